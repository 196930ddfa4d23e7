"""TruncateTable on a real Postgres: what it empties, and all that it refuses."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from harness import Stack, one_value
from jobledger import (
    ConfigurationError,
    Connections,
    JobHandle,
    JobRefused,
    JobStatus,
    PayloadError,
    Settings,
    configure,
)
from jobledger.jobs import TruncateTable
from jobledger.ledger import OWN_TABLES
from jobledger.worker import run_job

ODD_NAME = 'we"ird.näme; DROP TABLE daily_stats; -- %s :x'


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    odd = ODD_NAME.replace('"', '""')
    ledger = [f"public.{name}" for name in OWN_TABLES]
    listed = ["public.daily_stats", "public.parent", "public.a_view", "public.parted", f'public."{odd}"', *ledger]
    return environment | {"JOBLEDGER_TRUNCATABLE_TABLES": ",".join([*listed, "public.missing", "etl.schedules"])}


@pytest.fixture
def database(connections: Connections) -> Connections:
    odd = ODD_NAME.replace('"', '""').replace("%", "%%")
    with connections.transaction() as connection:
        connection.exec_driver_sql(f"""
            CREATE TABLE daily_stats AS SELECT 1 AS n;
            CREATE TABLE not_listed AS SELECT 1 AS n;
            CREATE TABLE parent (id int PRIMARY KEY);
            CREATE TABLE child (parent_id int REFERENCES parent);
            INSERT INTO parent VALUES (1);
            CREATE VIEW a_view AS SELECT * FROM daily_stats;
            CREATE TABLE parted (n int) PARTITION BY RANGE (n);
            CREATE TABLE parted_all PARTITION OF parted DEFAULT;
            INSERT INTO parted VALUES (1);
            CREATE TABLE "{odd}" AS SELECT 1 AS n;
            CREATE SCHEMA etl;
            CREATE TABLE etl.schedules AS SELECT 1 AS n;
        """)
    return connections


def run(handle: JobHandle) -> JobHandle:
    run_job(str(handle.id))
    return handle.refresh()


def rows(connections: Connections, table: str) -> int:
    return int(one_value(connections, f"SELECT count(*) FROM {table}"))


def test_empties_a_table_in_a_stock_worker(database: Connections, system: Stack) -> None:
    system.worker("low")
    handle = TruncateTable.dispatch(schema="public", table_name="daily_stats", queue="low").wait(30)
    assert handle.status is JobStatus.COMPLETED
    assert handle.result == "Table public.daily_stats truncated successfully"
    assert rows(database, "daily_stats") == 0


def test_empties_a_partitioned_table(database: Connections) -> None:
    run(TruncateTable.dispatch(schema="public", table_name="parted"))
    assert rows(database, "parted_all") == 0


def test_a_name_is_a_name_whatever_it_looks_like(database: Connections) -> None:
    handle = run(TruncateTable.dispatch(schema="public", table_name=ODD_NAME))
    assert handle.result == f"Table public.{ODD_NAME} truncated successfully"
    quoted = ODD_NAME.replace('"', '""').replace(":", "\\:")
    assert rows(database, f'"{quoted}"') == 0
    assert rows(database, "daily_stats") == 1


def test_a_table_that_is_only_called_like_one_of_the_ledgers(database: Connections) -> None:
    run(TruncateTable.dispatch(schema="etl", table_name="schedules"))
    assert rows(database, "etl.schedules") == 0


REFUSED = {
    ("public", "not_listed"): "not among the tables that JOBLEDGER_TRUNCATABLE_TABLES allows",
    ("public", "daily_stats; DROP TABLE not_listed"): "not among",
    ("public", 'daily_stats" CASCADE; --'): "not among",
    ("public", '"daily_stats"'): "not among",
    ("public", "Daily_Stats"): "not among",
    ("PUBLIC", "daily_stats"): "not among",
    ("", "public.daily_stats"): "not among",
    ("public", ""): "not among",
    ("pg_catalog", "pg_class"): "not among",
    ("public", "missing"): "does not exist",
    ("public", "a_view"): "is a view, not a table",
    **{("public", name): "one of the ledger's own tables" for name in OWN_TABLES},
}


def test_refused_at_dispatch(database: Connections) -> None:
    for (schema, table_name), reason in REFUSED.items():
        with pytest.raises(JobRefused) as raised:
            TruncateTable.dispatch(schema=schema, table_name=table_name)
        assert reason in str(raised.value), table_name
    assert rows(database, "job_statuses") == 0
    assert rows(database, "daily_stats") == 1


def test_every_table_of_the_ledger_is_known_as_its_own(connections: Connections) -> None:
    with connections.transaction() as connection:
        assert sorted(sa.inspect(connection).get_table_names()) == sorted(OWN_TABLES)


def test_payloads_that_do_not_fit(database: Connections) -> None:
    with pytest.raises(PayloadError, match="table_name"):
        TruncateTable.dispatch(schema="public")
    with pytest.raises(PayloadError, match="NUL"):
        TruncateTable.dispatch(schema="public", table_name="a\x00b")


def test_nothing_is_allowed_unless_it_is_said(settings: Settings, database: Connections) -> None:
    configure(settings.model_copy(update={"truncatable_tables": ()}))
    with pytest.raises(JobRefused, match=r"JOBLEDGER_TRUNCATABLE_TABLES allows \(nothing\)"):
        TruncateTable.dispatch(schema="public", table_name="daily_stats")


def test_a_list_that_cannot_be_read(settings: Settings, database: Connections) -> None:
    configure(settings.model_copy(update={"truncatable_tables": ("a.b.c",)}))
    with pytest.raises(ConfigurationError, match=r"JOBLEDGER_TRUNCATABLE_TABLES: 'a\.b\.c' is no table"):
        TruncateTable.dispatch(schema="public", table_name="daily_stats")


def test_checked_again_when_it_runs(settings: Settings, database: Connections) -> None:
    handle = TruncateTable.dispatch(schema="public", table_name="daily_stats")
    configure(settings.model_copy(update={"truncatable_tables": ()}))
    with pytest.raises(JobRefused):
        run_job(str(handle.id))
    configure(settings)
    assert handle.refresh().status is JobStatus.FAILED
    assert len(handle.attempts) == 1, "a refusal is not retried"
    assert rows(database, "daily_stats") == 1


def test_a_table_that_others_refer_to(database: Connections) -> None:
    handle = TruncateTable.dispatch(schema="public", table_name="parent")
    with pytest.raises(JobRefused, match=r'public.parent cannot be truncated: Table "child" references "parent"'):
        run_job(str(handle.id))
    assert handle.refresh().status is JobStatus.FAILED
    assert handle.attempts[0].error_type == "JobRefused"
    assert rows(database, "parent") == 1


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close what `configure` made in a test."""
    yield
    configure().close()
