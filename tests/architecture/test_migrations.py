"""The migrations build what the models say, go back and forth, and keep the renewal of a lease cheap."""

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from harness import eventually, stack
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import leases
from jobledger.ledger.leases import Progress
from jobledger.ledger.migrate import current_revision, downgrade, revisions, upgrade
from jobledger.ledger.models.columns import metadata

_numbers = count(1)

CATALOG = {
    "columns": """
        SELECT c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
               format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum), a.attidentity, a.attgenerated
          FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND c.relnamespace = 'public'::regnamespace
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid), condeferrable, convalidated
          FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    """,
    "indexes": """
        SELECT i.indrelid::regclass::text, c.relname, pg_get_indexdef(i.indexrelid), i.indisvalid, c.reloptions
          FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace
    """,
    "tables": """
        SELECT relname, reloptions, relpersistence, obj_description(oid) FROM pg_class
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
    """,
    "triggers": "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal",
    "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "types": """
        SELECT typname FROM pg_type t
         WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')
    """,
    "sequences": "SELECT relname FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace",
}


@pytest.fixture
def empty_database(servers: EmbeddedServers) -> Iterator[Callable[[], Engine]]:
    """Makes databases with nothing in them."""
    engines: list[Engine] = []

    def make() -> Engine:
        name = f"migrations_{next(_numbers)}"
        servers.postgres.create_database(name)
        engines.append(make_engine(servers.postgres.url_for(name), "test"))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()
        servers.postgres.drop_database(str(engine.url.database))


def catalog(engine: Engine, name: str) -> list[tuple[object, ...]]:
    """What Postgres knows of a schema, without what belongs to Alembic itself."""
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(sa.text(CATALOG[name]))]
    return sorted((row for row in rows if "alembic_version" not in row), key=repr)


def has_tables(engine: Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names()) - {"alembic_version"}


@pytest.fixture(scope="module")
def two_ways(servers: EmbeddedServers) -> Iterator[tuple[Engine, Engine]]:
    """One database built by the migrations, and one by the models."""
    servers.postgres.create_database("by_models")
    by_migrations = make_engine(servers.postgres.url_for("template_jobledger"), "test", poolclass=sa.NullPool)
    by_models = make_engine(servers.postgres.url_for("by_models"), "test", poolclass=sa.NullPool)
    metadata.create_all(by_models)
    yield by_migrations, by_models
    servers.postgres.drop_database("by_models")


@pytest.mark.parametrize("what", CATALOG)
def test_migrations_build_what_the_models_say(two_ways: tuple[Engine, Engine], what: str) -> None:
    by_migrations, by_models = two_ways

    assert catalog(by_migrations, what) == catalog(by_models, what)


def test_every_downgrade_is_undone_by_its_upgrade(empty_database: Callable[[], Engine]) -> None:
    engine = empty_database()
    upgrade(engine)
    built = {what: catalog(engine, what) for what in CATALOG}

    for revision in [*revisions()[1:], "base"]:
        downgrade(engine, revision)
        upgrade(engine)
        assert {what: catalog(engine, what) for what in CATALOG} == built


def test_the_last_downgrade_leaves_nothing(empty_database: Callable[[], Engine]) -> None:
    engine = empty_database()
    upgrade(engine)
    assert has_tables(engine) == set(metadata.tables)

    downgrade(engine, "base")

    assert has_tables(engine) == set()
    for what in ("functions", "types", "sequences", "triggers"):
        assert catalog(engine, what) == []


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(empty_database: Callable[[], Engine]) -> None:
    engine = empty_database()
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO sweeps (name, swept_by) VALUES ('reap', 'me')"))

    upgrade(engine)

    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM sweeps")).scalar() == 1
        assert current_revision(connection) == revisions()[0]


def test_two_upgrades_at_once_are_one(empty_database: Callable[[], Engine], tmp_path: Path) -> None:
    engine = empty_database()
    url = engine.url.render_as_string(hide_password=False)
    with stack({"JOBLEDGER_DATABASE_URL": url}, tmp_path) as system, engine.connect() as connection:
        # Holds them up until both are there.
        connection.execute(sa.text(f"CREATE TABLE {sorted(metadata.tables)[0]} ()"))
        both = [system.start(sys.executable, "-m", "jobledger", "migrate") for _ in range(2)]
        eventually(lambda: sessions_that_wait(engine) == 1, what="one waits for the table")
        eventually(lambda: asks_for_its_turn(engine), what="the other waits for the one")
        connection.rollback()
        for one in both:
            assert one.wait() == 0, one.output()

    assert has_tables(engine) == set(metadata.tables)


def sessions_that_wait(engine: Engine) -> int:
    """How many sessions of this database wait for a lock."""
    with engine.connect() as connection:
        here = "datname = current_database() AND wait_event_type = 'Lock'"
        return int(connection.execute(sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE {here}")).scalar_one())


def asks_for_its_turn(engine: Engine) -> bool:
    """Whether a session's last statement was to try for the lock that one has."""
    with engine.connect() as connection:
        asked = "state = 'idle' AND query LIKE '%pg_try_advisory_lock%' OR query = 'ROLLBACK'"
        here = f"datname = current_database() AND application_name = 'jobledger-migrate' AND ({asked})"
        return bool(connection.execute(sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE {here}")).scalar_one())


# -- a lease is renewed often


def test_no_index_holds_what_the_renewal_of_a_lease_writes(two_ways: tuple[Engine, Engine]) -> None:
    written = {"lease_expires_at", "progress_done", "progress_total", "progress_note", "log_tail"}
    for engine in two_ways:
        inspector = sa.inspect(engine)
        indexed = {column for index in inspector.get_indexes("job_attempts") for column in index["column_names"]}
        indexed |= set(inspector.get_pk_constraint("job_attempts")["constrained_columns"])
        assert not written & indexed


def test_the_renewal_of_a_lease_is_a_heap_only_update(empty_database: Callable[[], Engine]) -> None:
    engine = empty_database()
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("""
            INSERT INTO job_statuses (id, job_type, queue, status, payload, timeout_seconds, attempt, started_at)
            SELECT gen_random_uuid(), 'Echo', 'default', 'started', '{}', 60, 1, now() FROM generate_series(1, 100);
            INSERT INTO job_attempts (job_id, number, worker, host, pid, version, backend_pid, lease_expires_at)
            SELECT id, 1, 'w', 'h', 1, '1', 1, now() FROM job_statuses;
        """)
        ids = connection.execute(sa.text("SELECT id FROM job_statuses")).scalars().all()

    for job_id in ids:
        with engine.begin() as connection:
            assert leases.renew(connection, job_id, 1, 30, Progress())

    def updates() -> tuple[int, int] | None:
        """All and heap-only; the server counts them a moment later."""
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
            connection.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
            row = connection.execute(
                sa.text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'job_attempts'")
            ).one()
        return (row[0], row[1]) if row[0] >= 100 else None

    assert eventually(updates, what="the updates are counted") == (100, 100)
