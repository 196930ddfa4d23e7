"""The connections of a process: safe across fork, cut at their deadlines, back when the servers are."""

import contextlib
import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import sqlalchemy as sa
from pydantic import SecretStr

from harness import Stack, eventually, one_value
from jobledger import ConfigurationError, Connections, JobStatus, LedgerUnavailable, Settings, configure
from jobledger.connections.default import default_connections
from jobledger.connections.postgres import make_engine, unavailable_as_error
from jobledger.connections.redis import make_redis
from jobledger.dispatch.accept import dispatch
from jobledger.dispatch.admission import Request
from jobledger.domain.options import Options
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade

# Python 3.12 and later warn of every fork beside threads; RQ's workers fork, and so do these tests.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.timed,
    pytest.mark.one_database,  # nothing is written to it
]

MARGIN_SECONDS = 0.7
"""What a busy machine may take on top of a deadline."""


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Servers that these tests may freeze and restart; each test leaves them running."""
    with EmbeddedServers(tmp_path_factory.mktemp("own-servers"), persistent=False) as running:
        yield running


@pytest.fixture
def own(own_servers: EmbeddedServers) -> Iterator[Connections]:
    """Connections to the servers that may be frozen."""
    settings = Settings(database_url=SecretStr(own_servers.database_url), redis_url=SecretStr(own_servers.redis_url))
    made = Connections(settings)
    yield made
    made.close()


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """SIGSTOP for a server and all its children: the kernel still takes connections and data for them."""
    main = psutil.Process(pid)
    main.suspend()  # first, so that it starts no more children
    children = main.children(recursive=True)
    for one in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # a session that was just ending
            one.suspend()
    try:
        yield
    finally:
        main.resume()
        for one in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()


def in_child(work: Callable[[], Any]) -> Any:
    """What a function returns in a forked child, which then ends as a work-horse does: at once."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def session_of(connections: Connections) -> int:
    """Postgres' process id for the pooled connection."""
    return int(one_value(connections, "SELECT pg_backend_pid()"))


def sessions(connections: Connections) -> tuple[int, int]:
    """Who we are to Postgres and to Redis."""
    return session_of(connections), int(connections.redis.client_id())


# -- fork


def test_a_forked_child_connects_for_itself(connections: Connections) -> None:
    parents = sessions(connections)

    first = in_child(lambda: sessions(connections))
    second = in_child(lambda: sessions(connections))

    assert len({parents[0], first[0], second[0]}) == 3
    assert len({parents[1], first[1], second[1]}) == 3
    assert sessions(connections) == parents


def test_a_parents_transaction_goes_on_while_its_child_works(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 5 AS n"))

        assert in_child(lambda: one_value(connections, "SELECT to_regclass('mine')")) is None

        assert connection.execute(sa.text("SELECT n FROM mine")).scalar() == 5


def test_a_child_that_closes_everything_closes_nothing_of_its_parents(connections: Connections) -> None:
    parents = sessions(connections)

    def close_all() -> int:
        connections.close()
        return gc.collect()

    def use_and_close_all() -> int:
        sessions(connections)
        return close_all()

    in_child(close_all)
    in_child(use_and_close_all)

    assert sessions(connections) == parents


def test_a_child_of_a_child_connects_for_itself_too(connections: Connections) -> None:
    parents = sessions(connections)

    def with_child() -> list[Any]:
        own = sessions(connections)
        return [own, in_child(lambda: sessions(connections)), own == sessions(connections)]

    child, grandchild, childs_is_unchanged = in_child(with_child)

    assert childs_is_unchanged
    assert len({parents[0], child[0], grandchild[0]}) == 3
    assert sessions(connections) == parents


def test_a_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held(connections: Connections) -> None:
    with connections._lock:
        assert in_child(lambda: one_value(connections, "SELECT 5")) == 5


def test_deadlines_are_kept_in_a_child_of_a_process_that_keeps_them(own: Connections) -> None:
    with own.transaction(10):
        pass

    def outlive_a_deadline() -> bool:
        try:
            with own.transaction(0.2) as connection:
                connection.execute(sa.text("SELECT pg_sleep(20)"))
        except LedgerUnavailable:
            return True
        return False

    assert in_child(outlive_a_deadline)


# -- deadlines


def test_a_transaction_that_is_too_slow_is_cut(connections: Connections) -> None:
    before = session_of(connections)

    started = time.monotonic()
    with (
        pytest.raises(LedgerUnavailable, match="Postgres is away"),
        connections.transaction(0.3) as connection,
    ):
        connection.execute(sa.text("SELECT pg_sleep(20)"))

    assert 0.3 <= time.monotonic() - started < 0.3 + MARGIN_SECONDS
    assert session_of(connections) != before


def test_a_transaction_that_was_in_time_is_not_cut_later(connections: Connections) -> None:
    with connections.transaction(1.0) as connection:
        before = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()

    assert one_value(connections, "SELECT pg_backend_pid() FROM pg_sleep(1.2)") == before


def test_an_error_of_a_statement_stays_what_it_is_under_a_deadline(connections: Connections) -> None:
    with pytest.raises(sa.exc.ProgrammingError), connections.transaction(5) as connection:
        connection.execute(sa.text("SELECT nothing FROM nowhere"))


def test_an_earlier_deadline_is_kept_while_a_later_one_is_open(connections: Connections) -> None:
    with connections.transaction(30) as patient:
        patient.execute(sa.text("SELECT 1"))
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable), connections.transaction(0.2) as connection:
            connection.execute(sa.text("SELECT pg_sleep(20)"))

        assert time.monotonic() - started < 0.2 + MARGIN_SECONDS
        assert patient.execute(sa.text("SELECT 5")).scalar() == 5


def test_a_frozen_postgres_is_away_at_the_deadline_and_back_when_it_continues(
    own: Connections, own_servers: EmbeddedServers
) -> None:
    session_of(own)

    with frozen(own_servers.postgres.pid):
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable), own.transaction(0.4) as connection:
            connection.execute(sa.text("SELECT 1"))
        assert 0.4 <= time.monotonic() - started < 0.4 + MARGIN_SECONDS

    assert one_value(own, "SELECT 5") == 5


def test_a_postgres_that_freezes_before_the_commit_is_away_at_the_deadline(
    own: Connections, own_servers: EmbeddedServers
) -> None:
    def freeze_before_the_commit(cold: contextlib.ExitStack) -> None:
        with own.transaction(0.4) as connection:
            connection.execute(sa.text("SELECT 1"))
            cold.enter_context(frozen(own_servers.postgres.pid))

    with contextlib.ExitStack() as cold:
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            freeze_before_the_commit(cold)
        assert time.monotonic() - started < 0.4 + MARGIN_SECONDS

    assert one_value(own, "SELECT 5") == 5


def test_a_frozen_postgres_that_is_not_connected_yet_is_away_after_two_seconds(
    own: Connections, own_servers: EmbeddedServers
) -> None:
    with frozen(own_servers.postgres.pid):
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable), own.transaction(0.4):
            pass
        assert time.monotonic() - started < 2 + MARGIN_SECONDS

    assert one_value(own, "SELECT 5") == 5


def test_deadlines_leave_no_sockets_behind(connections: Connections) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    one_value(connections, "SELECT 1")
    before = open_files()

    for _ in range(300):
        with connections.transaction(60) as connection:
            connection.execute(sa.text("SELECT 1"))

    assert open_files() == before


# -- away and back


@pytest.fixture
def closed_port() -> int:
    """A port that refuses every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_refused_connection_is_an_unavailable_ledger(settings: Settings, closed_port: int) -> None:
    url = SecretStr(f"postgresql://me:secret@127.0.0.1:{closed_port}/x")
    away = Connections(settings.model_copy(update={"database_url": url}))

    with pytest.raises(LedgerUnavailable, match=r"^Postgres is away: .*refused$") as refused, away.transaction():
        pass
    with pytest.raises(LedgerUnavailable, match=r"^Postgres is away: .*refused$"):
        away.raw_connection()
    assert "secret" not in str(refused.value)


def test_the_first_transaction_after_a_restart_of_postgres_works(
    own: Connections, own_servers: EmbeddedServers
) -> None:
    before = session_of(own)

    own_servers.postgres.restart()

    assert session_of(own) != before


def test_a_session_that_is_ended_in_a_transaction_is_an_unavailable_ledger(connections: Connections) -> None:
    with pytest.raises(LedgerUnavailable), connections.transaction() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert one_value(connections, "SELECT 5") == 5


def test_a_pool_without_a_free_connection_is_an_unavailable_ledger(settings: Settings) -> None:
    pool = make_engine(settings.require_database_url(), "test", pool_size=1, max_overflow=0, pool_timeout=0.1)

    with pool.connect(), pytest.raises(LedgerUnavailable, match="busy"), unavailable_as_error():
        pool.connect()

    pool.dispose()


def test_a_frozen_redis_is_away_at_once_and_back_when_it_continues(
    own: Connections, own_servers: EmbeddedServers
) -> None:
    assert own.redis.ping()

    with frozen(own_servers.redis.pid):
        for _ in range(2):  # on a connection that was there before; and on one that has to be made
            started = time.monotonic()
            with pytest.raises(redis.RedisError):
                own.redis.ping()
            assert time.monotonic() - started < 0.3 + MARGIN_SECONDS

    eventually(lambda: redis_answers(own), seconds=3, what="Redis answers again")


def redis_answers(connections: Connections) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(connections.redis.ping())
    return False


def test_many_dispatches_do_not_wait_for_a_frozen_redis_one_after_another(
    own: Connections, own_servers: EmbeddedServers
) -> None:
    upgrade(own.engine)
    request = Request("Echo", "{}", Options(), has_on_failed=False)
    assert own.redis.ping()

    with frozen(own_servers.redis.pid):
        started = time.monotonic()
        for _ in range(20):
            (accepted,) = dispatch([request], into=own)
            assert accepted.status is JobStatus.QUEUED
        assert time.monotonic() - started < 2

    healed = time.monotonic()
    eventually(lambda: redis_answers(own), seconds=3, what="Redis answers again")
    assert time.monotonic() - healed < 1 + MARGIN_SECONDS


def test_while_a_circuit_is_open_one_call_a_second_tries(own: Connections, own_servers: EmbeddedServers) -> None:
    assert own.redis.ping()

    with frozen(own_servers.redis.pid):
        asked = []
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(redis.RedisError):
                own.redis.ping()
            asked.append(time.monotonic() - started > 0.2)
        with ThreadPoolExecutor(8) as pool:
            time.sleep(1.05)  # the circuit's own pause
            waited = list(pool.map(lambda _: timed_ping(own), range(8)))

    assert asked == [True, True, False]
    assert sum(seconds > 0.2 for seconds in waited) == 1


def timed_ping(connections: Connections) -> float:
    started = time.monotonic()
    redis_answers(connections)
    return time.monotonic() - started


def test_repair_waits_longer_for_redis_and_without_a_circuit(own: Connections, own_servers: EmbeddedServers) -> None:
    assert own.maintenance_redis.ping()

    with frozen(own_servers.redis.pid):
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(redis.RedisError):
                own.maintenance_redis.ping()
            assert 1.9 < time.monotonic() - started < 2 + MARGIN_SECONDS

    assert own.maintenance_redis.ping()


def test_nothing_is_sent_twice_to_a_redis_whose_answer_was_lost(own_servers: EmbeddedServers) -> None:
    with contextlib.closing(make_redis(own_servers.redis_url)) as client:
        client.delete("sent")
        with frozen(own_servers.redis.pid), pytest.raises(redis.TimeoutError):
            client.rpush("sent", "once")

        eventually(lambda: client.llen("sent"), what="the frozen Redis has done it")
        assert client.lrange("sent", 0, -1) == [b"once"]


# -- one per process


def test_what_is_configured_is_the_default(settings: Settings) -> None:
    first = configure(settings)
    assert default_connections() is first

    second = configure(settings)

    assert default_connections() is second
    assert second is not first
    second.close()


def test_what_was_the_default_is_closed(settings: Settings) -> None:
    before = configure(settings)
    session = session_of(before)

    now = configure(settings)

    eventually(lambda: one_value(now, "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid", pid=session) == 0)
    assert default_connections() is not before
    now.close()


def test_single_values_win_over_the_environment(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    made = configure(lease_seconds=7)

    assert made.settings.lease_seconds == 7
    assert made.settings.require_database_url() == environment["JOBLEDGER_DATABASE_URL"]
    assert one_value(made, "SELECT 5") == 5
    made.close()


def test_a_default_that_is_wrong_leaves_the_one_before(connections: Connections) -> None:
    with pytest.raises(ConfigurationError, match="JOBLEDGER_LEASE_SECONDS"):
        configure(lease_seconds="soon")

    assert default_connections() is connections
    assert one_value(connections, "SELECT 5") == 5


def test_the_environment_says_the_default_of_a_process_that_configures_nothing(
    system: Stack, connections: Connections
) -> None:
    process = system.start(sys.executable, "-c", "import sample_jobs; print(sample_jobs.Echo.dispatch().id)")

    assert process.wait() == 0, process.output()
    job_id = process.output().strip()
    assert one_value(connections, "SELECT status FROM job_statuses WHERE id = CAST(:id AS uuid)", id=job_id) == "queued"


def test_closed_connections_may_be_used_again(connections: Connections) -> None:
    before = sessions(connections)
    connections.close()

    after = sessions(connections)

    assert before[0] != after[0]
    assert before[1] != after[1]


def test_postgres_sees_who_is_connected_in_which_zone_and_isolation(connections: Connections) -> None:
    shown = "SELECT current_setting('application_name'), current_setting('TimeZone'), current_setting('{}')"
    with connections.transaction() as connection:
        row = connection.execute(sa.text(shown.format("transaction_isolation"))).one()

    assert tuple(row) == ("jobledger", "UTC", "read committed")
