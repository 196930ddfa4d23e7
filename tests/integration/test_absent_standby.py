"""A synchronous standby that is away: commits wait for it; dispatches give up, and leave no backend that waits on."""

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg2
import pytest
import sqlalchemy as sa

from harness import eventually
from jobledger import Connections, JobHandle, JobStatus, LedgerUnavailable, Settings, configure
from jobledger.connections import deadlines
from jobledger.connections.cancels import MOST_THREADS
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from jobledger.worker import run_job
from sample_jobs import Echo

THREADS = 3 * MOST_THREADS
MARGIN_SECONDS = 3.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[EmbeddedServers, Connections]]:
    with EmbeddedServers(tmp_path / "own", persistent=False) as servers:
        engine = make_engine(servers.database_url, "template")
        upgrade(engine)
        engine.dispose()
        made = configure(Settings(database_url=servers.database_url, redis_url=servers.redis_url))
        yield servers, made
        await_standby(servers, "")
        made.close()


def operate(servers: EmbeddedServers, *statements: str) -> object:
    """Statements of the operator, none of which waits for a standby; what the last one gives."""
    engine = sa.create_engine(servers.database_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        results = [connection.execute(sa.text(statement)) for statement in statements]
        return results[-1].scalar() if results[-1].returns_rows else None


def await_standby(servers: EmbeddedServers, name: str) -> None:
    operate(servers, f"ALTER SYSTEM SET synchronous_standby_names = '{name}'", "SELECT pg_reload_conf()")
    eventually(lambda: operate(servers, "SHOW synchronous_standby_names") == name, what="the new setting")


def waiting(servers: EmbeddedServers) -> int:
    found = operate(servers, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    assert isinstance(found, int)
    return found


def dispatch_in_vain() -> float:
    begun = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        Echo.dispatch()
    return time.monotonic() - begun


def test_dispatches_give_up_and_their_backends_end(own: tuple[EmbeddedServers, Connections]) -> None:
    servers, connections = own
    await_standby(servers, "absent")

    with ThreadPoolExecutor(THREADS) as pool:
        attempts = [pool.submit(dispatch_in_vain) for _ in range(THREADS)]
        eventually(lambda: waiting(servers) > 0, what="commits that wait")
        took = [attempt.result() for attempt in attempts]
    assert max(took) < deadlines.DISPATCH_SECONDS + MARGIN_SECONDS
    eventually(lambda: waiting(servers) == 0, what="the end of their waits")
    name = connections.application_name
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' AND state <> 'idle'"
    eventually(lambda: operate(servers, left.format(name)) == 0, what="the end of their backends")

    await_standby(servers, "")
    written = operate(servers, "SELECT array_agg(CAST(id AS text)) FROM job_statuses WHERE status = 'queued'")
    assert isinstance(written, list), "what was written stays, as after a connection that was lost in a commit"
    assert run_job(written[0]) == "completed"
    assert Echo.dispatch().refresh().status is JobStatus.QUEUED


def test_no_connection_is_needed_to_end_a_backend(own: tuple[EmbeddedServers, Connections]) -> None:
    servers, _ = own
    JobHandle.fetch(Echo.dispatch().id)  # there is a pooled connection
    with psycopg2.connect(
        sa.make_url(servers.database_url).set(drivername="postgresql").render_as_string(False)
    ) as raw:
        await_standby(servers, "absent")
        raw.autocommit = True
        held = fill(servers)
        dispatch_in_vain()
        with raw.cursor() as cursor:

            def still_waiting() -> int:
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
                return int(cursor.fetchone()[0])

            eventually(lambda: still_waiting() == 0, what="the end of its wait")
        for one in held:
            one.close()
    raw.close()


def fill(servers: EmbeddedServers) -> list[psycopg2.extensions.connection]:
    """Connections until there is no room for another one."""
    url = sa.make_url(servers.database_url).set(drivername="postgresql").render_as_string(False)
    held = []
    for _ in range(1000):
        try:
            held.append(psycopg2.connect(url))
        except psycopg2.OperationalError:
            break
    assert len(held) < 1000
    return held


def test_a_backend_that_was_canceled_before_it_read_its_commit_is_canceled_again(
    own: tuple[EmbeddedServers, Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers, connections = own
    await_standby(servers, "absent")
    monkeypatch.setattr(deadlines, "CANCEL_AGAIN_SECONDS", 8.0)  # surely after it has been resumed

    with pytest.raises(LedgerUnavailable):
        commit_frozen(connections)

    eventually(lambda: waiting(servers) == 0, what="the end of its wait")
    ended = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}'"
    eventually(lambda: operate(servers, ended.format(connections.application_name)) == 0, what="its end")
    assert operate(servers, "SELECT count(*) FROM written") == 0, "it has read its COMMIT"


def commit_frozen(connections: Connections) -> None:
    """The backend stands still from before the COMMIT until after the first cancel request."""
    backend = None
    try:
        with connections.transaction(2.0) as connection:
            pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            connection.execute(sa.text("CREATE TABLE written (number int)"))
            backend = psutil.Process(pid)
            backend.suspend()
    finally:
        if backend is not None:
            status = Path(f"/proc/{backend.pid}/status")
            eventually(lambda: is_interrupted(status), what="the first cancel request")
            backend.resume()


def is_interrupted(status: Path) -> bool:
    """Whether a process that stands still has a SIGINT to receive, which is what a cancel request comes to."""
    pending = re.search(r"^ShdPnd:\s*(\w+)$", status.read_text(), re.MULTILINE)
    return pending is not None and bool(int(pending[1], 16) & 1 << signal.SIGINT - 1)
