"""The API while its servers are stopped or frozen: it answers in time, and works again when they do."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import redis
import sqlalchemy as sa

from harness import Stack, eventually, stack
from jobledger import Connections, Settings
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import revisions, upgrade
from jobledger.observe.health import Level, Schema, judge, look_at_ledger

pytestmark = pytest.mark.timed

JOB = {"job": "EmptyTable", "payload": {"schema": "public", "table_name": "daily_stats"}}
UNKNOWN = "/job-status/01970000-0000-7000-8000-000000000000"
UNCERTAIN = "It is not known whether anything was accepted."
OUR_SECONDS = 1.0
"""What 45 threads in one process may take for themselves, on a machine that does other things too."""


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Servers that these tests may stop and freeze; each test leaves them running."""
    with EmbeddedServers(tmp_path_factory.mktemp("own-servers"), persistent=False) as running:
        engine = make_engine(running.database_url, "template")
        upgrade(engine)
        engine.dispose()
        yield running


@pytest.fixture(scope="module")
def system(own_servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {
        "JOBLEDGER_DATABASE_URL": own_servers.database_url,
        "JOBLEDGER_REDIS_URL": own_servers.redis_url,
        "JOBLEDGER_JOB_MODULES": "api_jobs",
    }
    with stack(environment, tmp_path_factory.mktemp("outages")) as running:
        yield running


@pytest.fixture(scope="module")
def url(system: Stack) -> str:
    """One API for all outages: it must survive each."""
    return system.api()


@pytest.fixture
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=10) as client:
        assert client.post("/create-jobs/", json=JOB).status_code == 201  # there is a pooled connection to be lost
        yield client


@contextlib.contextmanager
def stopped(own_servers: EmbeddedServers, name: str) -> Iterator[None]:
    server = own_servers.postgres if name == "postgres" else own_servers.redis
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextlib.contextmanager
def frozen(own_servers: EmbeddedServers, name: str) -> Iterator[None]:
    """SIGSTOP for a server and all its children: the kernel still takes connections and data for them."""
    main = psutil.Process((own_servers.postgres if name == "postgres" else own_servers.redis).pid)
    main.suspend()  # first, so that it starts no more children
    everyone = [main, *main.children(recursive=True)]
    for one in everyone[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            one.suspend()
    try:
        yield
    finally:
        for one in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()


OUTAGES = pytest.mark.parametrize("outage", [stopped, frozen])
Outage = Callable[[EmbeddedServers, str], contextlib.AbstractContextManager[None]]


def _timed(ask: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = ask()
    return answer, time.monotonic() - began


class TestPostgresAway:
    @OUTAGES
    def test_is_said_within_two_seconds(self, api: httpx.Client, own_servers: EmbeddedServers, outage: Outage) -> None:
        with outage(own_servers, "postgres"):
            for _ in range(2):  # on a connection that was there before; and on one that would have to be made
                created, seconds = _timed(lambda: api.post("/create-jobs/", json=JOB))
                assert (created.status_code, seconds < 2) == (503, True), seconds
                assert created.json()["detail"].endswith(UNCERTAIN)
                status, seconds = _timed(lambda: api.get(UNKNOWN))
                assert (status.status_code, seconds < 2) == (503, True), seconds
                assert status.json() == {"detail": "Postgres is away or did not answer in time."}
                assert status.headers["Retry-After"]
                health, seconds = _timed(lambda: api.get("/health"))
                assert (health.status_code, seconds < 2) == (503, True), seconds
                assert health.json()["status"] == "unavailable"
                assert (health.json()["postgres"], health.json()["redis"]) == ("away", "ok")
        eventually(lambda: api.get("/health").status_code == 200)
        assert api.post("/create-jobs/", json=JOB).status_code == 201

    def test_is_said_in_time_to_everybody(self, api: httpx.Client, url: str, own_servers: EmbeddedServers) -> None:
        """More requests than the API has threads; and /health does not wait behind them."""

        def ask(number: int) -> tuple[int, float]:
            path = ("/health", UNKNOWN, "/create-jobs/")[number % 3]
            post = path == "/create-jobs/"
            answer, seconds = _timed(lambda: client.post(path, json=JOB) if post else client.get(path))
            return answer.status_code, seconds

        with (
            frozen(own_servers, "postgres"),
            httpx.Client(base_url=url, timeout=10, limits=httpx.Limits(max_connections=60)) as client,
            ThreadPoolExecutor(45) as pool,
        ):
            answers = list(pool.map(ask, range(45)))
        assert {code for code, _ in answers} == {503}
        assert max(seconds for _, seconds in answers) < 2 + OUR_SECONDS
        eventually(lambda: api.post("/create-jobs/", json=JOB).status_code == 201)

    def test_for_a_moment_fails_no_request_after_it(
        self, api: httpx.Client, url: str, own_servers: EmbeddedServers
    ) -> None:
        with ThreadPoolExecutor(10) as pool, httpx.Client(base_url=url, timeout=10) as client:

            def create(_: int) -> int:
                return client.post("/create-jobs/", json=JOB).status_code

            assert set(pool.map(create, range(20))) == {201}  # several pooled connections
            own_servers.postgres.restart()
            assert set(pool.map(create, range(20))) == {201}


class TestRedisAway:
    @OUTAGES
    def test_delays_jobs_and_refuses_none(
        self, api: httpx.Client, system: Stack, own_servers: EmbeddedServers, outage: Outage
    ) -> None:
        with outage(own_servers, "redis"):
            created, seconds = _timed(lambda: api.post("/create-jobs/", json=JOB))
            assert (created.status_code, seconds < 1) == (201, True), seconds
            several, seconds = _timed(lambda: api.post("/create-jobs/", json=[JOB] * 10))
            assert (several.status_code, seconds < 1) == (201, True), seconds
            path = f"/job-status/{created.json()['job_id']}"
            assert api.get(path).json()["status"] == "queued"
            health, seconds = _timed(lambda: api.get("/health"))
            assert (health.status_code, seconds < 2) == (200, True), seconds
            assert (health.json()["status"], health.json()["redis"]) == ("degraded", "away")
        worker, scheduler = system.worker("low"), system.scheduler()
        eventually(lambda: api.get(path).json()["status"] == "completed", what="the relay and the run")
        health = eventually(
            lambda: next(
                (one for one in [api.get("/health").json()] if one["status"] == "ok" and one["last_count"]), None
            )
        )
        assert health is not None
        assert health.pop("last_sweep_age_seconds") < 15
        assert health.pop("last_count_age_seconds") < 60
        assert {"listed", "running", "drift"} <= set(health.pop("last_count"))
        assert health == {
            "status": "ok",
            "postgres": "ok",
            "redis": "ok",
            "schema_state": "current",
            "clock_set_back_seconds": None,
            "schema_revision": revisions()[0],
        }
        for one in (worker, scheduler):
            one.stop()


def test_a_redis_that_takes_no_writes_is_said_to_refuse(api: httpx.Client, own_servers: EmbeddedServers) -> None:
    with redis.Redis.from_url(own_servers.redis_url) as client:
        client.replicaof("127.0.0.1", 1)
        try:
            health = api.get("/health")
        finally:
            client.replicaof("NO", "ONE")
    assert (health.status_code, health.json()["status"], health.json()["redis"]) == (200, "degraded", "refuses")
    eventually(lambda: api.get("/health").json()["redis"] == "ok")


class TestHealth:
    """What the servers say, without a process of the API."""

    @pytest.fixture
    def connections(self, own_servers: EmbeddedServers) -> Iterator[Connections]:
        made = Connections(Settings(database_url=own_servers.database_url, redis_url=own_servers.redis_url))
        with made.transaction() as connection:
            connection.execute(sa.text("DELETE FROM sweeps"))
        yield made
        made.close()

    @pytest.mark.parametrize(
        ("known", "schema", "level"),
        [
            (revisions(), Schema.CURRENT, Level.DEGRADED),
            (("later", *revisions()), Schema.OLDER, Level.UNAVAILABLE),
            (("earlier",), Schema.NEWER, Level.DEGRADED),
        ],
    )
    def test_compares_the_schema(
        self, connections: Connections, known: tuple[str, ...], schema: Schema, level: Level
    ) -> None:
        state = look_at_ledger(connections, known)
        assert (state.schema, state.revision) == (schema, revisions()[0])
        assert judge(state, redis_works=True) is level

    def test_sees_that_the_schema_is_missing(self, own_servers: EmbeddedServers) -> None:
        own_servers.postgres.create_database("empty")
        connections = Connections(Settings(database_url=own_servers.postgres.url_for("empty")))
        state = look_at_ledger(connections, revisions())
        connections.close()
        assert (state.schema, state.revision) == (Schema.MISSING, None)
        assert judge(state, redis_works=True) is Level.UNAVAILABLE

    @pytest.mark.parametrize(("age_seconds", "level"), [(1, Level.OK), (60, Level.DEGRADED)])
    def test_sees_whether_somebody_repairs(self, connections: Connections, age_seconds: int, level: Level) -> None:
        with connections.transaction() as connection:
            sweep = sa.text("INSERT INTO sweeps VALUES (:name, now() - make_interval(secs => :age), now(), 'me')")
            for name in ("relay", "reap", "reconcile"):
                connection.execute(sweep, {"name": name, "age": age_seconds})
        state = look_at_ledger(connections, revisions())
        assert state.last_sweep_age_seconds == pytest.approx(age_seconds, abs=5)
        assert judge(state, redis_works=True) is level
        assert judge(state, redis_works=False) is Level.DEGRADED

    @pytest.mark.parametrize("name", ["relay", "reap", "reconcile"])
    def test_somebody_repairs_only_if_all_is_done(self, connections: Connections, name: str) -> None:
        with connections.transaction() as connection:
            sweep = sa.text("INSERT INTO sweeps (name, swept_by) VALUES (:name, 'me')")
            for other in {"relay", "reap", "reconcile"} - {name}:
                connection.execute(sweep, {"name": other})
        assert not look_at_ledger(connections, revisions()).sweeps
