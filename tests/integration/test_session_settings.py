"""What a role, the environment or a URL sets for sessions: what is kept, what is overridden, and that jobs complete."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from harness import execute, one_value
from jobledger import BaseJob, Connections, JobStatus, LedgerUnavailable, Settings, configure
from jobledger.connections.postgres import make_engine
from jobledger.ledger import migrate
from jobledger.observe.health import look_at_ledger
from jobledger.worker import run_job, work_horse
from sample_jobs import EFFECTS

WORDS = "žluťoučký 🐎 \\ ' \\' \\\\n % :name"


class Guest(BaseJob):
    """Is slow before it uses its session for the first time, and slow in the transaction."""

    def _perform(self, words: str, at: datetime, seconds: float = 0.0) -> dict[str, Any]:
        time.sleep(seconds)
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
            {"id": self.job_id, "attempt": self.attempt, "note": words},
        )
        self.session.flush()
        time.sleep(seconds)
        return {"words": words, "at": at}


@pytest.fixture
def as_guest(connections: Connections, settings: Settings) -> Iterator[Callable[..., Connections]]:
    """Connections of a role that may use the ledger and has settings of its own."""
    for statement in (
        EFFECTS,
        "CREATE ROLE guest LOGIN PASSWORD 'guest'",
        "CREATE SCHEMA app AUTHORIZATION guest",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO guest",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guest",
    ):
        execute(connections, statement)
    made: list[Connections] = []

    def connect(query: str = "", **role_settings: str) -> Connections:
        for name, value in role_settings.items():
            execute(connections, f"ALTER ROLE guest SET {name} = {value}")
        url = sa.make_url(settings.require_database_url()).set(username="guest", password="guest")
        text = url.render_as_string(hide_password=False) + query
        made.append(configure(Settings(database_url=text, redis_url=settings.require_redis_url())))
        return made[-1]

    yield connect
    for one in made:
        one.close()
    for statement in ("DROP OWNED BY guest", "DROP ROLE guest"):
        execute(connections, statement)


def setting(connections: Connections, name: str) -> str:
    return str(one_value(connections, "SELECT current_setting(:name)", name=name))


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("idle_session_timeout", "'200ms'", 1.0),
        ("idle_in_transaction_session_timeout", "'200ms'", 1.0),
        pytest.param("transaction_timeout", "'400ms'", 1.0),
        ("statement_timeout", "'1ms'", 0.0),
        ("lock_timeout", "'1ms'", 0.0),
        ("default_transaction_isolation", "serializable", 0.0),
        ("default_transaction_deferrable", "on", 0.0),
        ("search_path", "app, public", 0.0),
        ("row_security", "off", 0.0),
        ("client_encoding", "LATIN1", 0.0),
        ("DateStyle", "'SQL, DMY'", 0.0),
        ("IntervalStyle", "sql_standard", 0.0),
        ("bytea_output", "escape", 0.0),
        ("standard_conforming_strings", "off", 0.0),
        ("timezone", "'Asia/Tokyo'", 0.0),
        ("extra_float_digits", "-15", 0.0),
        ("synchronous_commit", "off", 0.0),
        ("plan_cache_mode", "force_generic_plan", 0.0),
    ],
)
def test_a_job_completes_whatever_its_role_sets(
    as_guest: Callable[..., Connections], name: str, value: str, seconds: float
) -> None:
    if name == "transaction_timeout" and major(as_guest()) < 17:
        return  # no such setting, so no role has it
    if name == "standard_conforming_strings" and major(as_guest()) > 18:
        return  # it cannot be turned off any more
    connections = as_guest(**{name: value})
    at = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)

    job = Guest.dispatch(words=WORDS, at=at, seconds=seconds, expires_in=3600)
    assert run_job(str(job.id)) == "completed"

    (attempt,) = job.refresh().attempts
    assert attempt.outcome == "completed"
    assert job.status is JobStatus.COMPLETED
    assert job.result == {"words": WORDS, "at": "2026-05-04T03:02:01.123456Z"}
    assert one_value(connections, "SELECT note FROM effects WHERE job_id = :id", id=job.id) == WORDS
    assert attempt.started_at.tzinfo is not None
    assert abs((datetime.now(UTC) - attempt.started_at).total_seconds()) < 60


def major(connections: Connections) -> int:
    return int(setting(connections, "server_version_num")) // 10_000


def test_what_correctness_needs_wins_over_the_role(as_guest: Callable[..., Connections]) -> None:
    connections = as_guest(idle_session_timeout="'1min'", timezone="'Asia/Tokyo'", client_encoding="LATIN1")

    assert setting(connections, "idle_session_timeout") == "0"
    assert setting(connections, "TimeZone") == "UTC"
    assert setting(connections, "client_encoding") == "UTF8"


def test_the_rest_of_a_role_is_kept(as_guest: Callable[..., Connections]) -> None:
    connections = as_guest(search_path="app, public", work_mem="'7MB'", IntervalStyle="sql_standard")

    assert setting(connections, "search_path") == "app, public"
    assert setting(connections, "work_mem") == "7MB"
    assert setting(connections, "IntervalStyle") == "sql_standard"


def test_the_options_of_a_url_are_kept(as_guest: Callable[..., Connections]) -> None:
    options = quote(r"-csearch_path=app,public -c work_mem=7MB --timezone=Asia/Tokyo -c lock_timeout=1ms")
    connections = as_guest(f"?options={options}&application_name=theirs&connect_timeout=7&keepalives_idle=9")

    assert setting(connections, "search_path") == "app,public"
    assert setting(connections, "work_mem") == "7MB"
    assert setting(connections, "application_name") == "theirs"
    assert setting(connections, "TimeZone") == "UTC"
    assert setting(connections, "lock_timeout") == "0"
    raw = connections.raw_connection()
    assert raw.dbapi_connection.info.dsn_parameters["connect_timeout"] == "7"
    assert raw.dbapi_connection.info.dsn_parameters["keepalives_idle"] == "9"
    assert raw.dbapi_connection.info.dsn_parameters["keepalives_count"] == "3"
    raw.close()


def test_the_options_of_the_environment_are_kept(
    as_guest: Callable[..., Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=7MB -c timezone=Asia/Tokyo")
    connections = as_guest()

    assert setting(connections, "work_mem") == "7MB"
    assert setting(connections, "TimeZone") == "UTC"


# -- a Postgres that takes no writes


def test_a_postgres_that_takes_no_writes_is_an_unavailable_ledger(
    as_guest: Callable[..., Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Guest.dispatch(words="", at=datetime.now(UTC))
    connections = as_guest(default_transaction_read_only="on")

    with pytest.raises(LedgerUnavailable, match=r"^Postgres takes no writes: cannot execute INSERT"):
        Guest.dispatch(words="", at=datetime.now(UTC))
    with pytest.raises(LedgerUnavailable, match=r"^Postgres takes no writes"):
        look_at_ledger(connections, migrate.revisions())
    monkeypatch.setattr(work_horse, "LEDGER_PATIENCE_SECONDS", 0.5)
    with pytest.raises(LedgerUnavailable, match=r"^Postgres takes no writes: cannot execute"):
        run_job(str(waiting.id))
    assert waiting.refresh().status is JobStatus.QUEUED


def test_a_job_that_has_its_transaction_read_only_completes(as_guest: Callable[..., Connections]) -> None:
    as_guest()
    job = ReadsOnly.dispatch()

    assert run_job(str(job.id)) == "completed"


class ReadsOnly(BaseJob):
    """Promises not to write."""

    def _perform(self) -> None:
        self.session.execute(sa.text("SET TRANSACTION READ ONLY"))


def test_a_migration_has_no_limit_of_the_role(as_guest: Callable[..., Connections]) -> None:
    connections = as_guest(statement_timeout="'1ms'", search_path="app")
    engine = make_engine(connections.settings.require_database_url(), "migration")

    migrate.upgrade(engine)

    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT to_regclass('app.job_statuses')")).scalar() == "job_statuses"
    engine.dispose()
