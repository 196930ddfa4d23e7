"""The Redis client of a worker's process: what it survives, and what it does not wait for."""

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis

from harness import Stack, eventually, stack
from jobledger import Connections, JobStatus, Settings, configure
from jobledger.connections.postgres import make_engine
from jobledger.connections.redis import is_refusal, make_redis
from jobledger.embedded import EmbeddedRedis, EmbeddedServers, free_port
from jobledger.ledger.migrate import upgrade
from jobledger.worker import ResilientRedis
from jobledger.worker.redis import HEALTH_CHECK_SECONDS, RedisPatience, with_endurance
from redis_refusals import REFUSALS, ConfiguredRedis, Refusal, full
from sample_jobs import Echo, Reports

OUTAGE_SECONDS = 4.0


@pytest.fixture
def starter() -> Iterator[ThreadPoolExecutor]:
    """A thread that starts servers: the kernel ends them with it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def own_redis(tmp_path: Path, starter: ThreadPoolExecutor) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "own-redis", persistent=False)
    starter.submit(server.start).result()
    yield server
    server.stop()


def test_a_command_waits_for_a_redis_that_is_away(own_redis: EmbeddedRedis, starter: ThreadPoolExecutor) -> None:
    with ResilientRedis.from_url(own_redis.url) as client:
        assert client.set("a", "1")
        own_redis.stop()

        def start() -> None:
            time.sleep(OUTAGE_SECONDS)  # the outage itself
            own_redis.start()

        healing = starter.submit(start)
        assert client.set("a", "2")
        assert healing.done()
        assert client.get("a") == b"2"


@pytest.mark.timed
def test_all_attempts_inside_one_call_share_its_patience(own_redis: EmbeddedRedis) -> None:
    with ResilientRedis.from_url(own_redis.url, retry=RedisPatience(1.0)) as client:
        assert client.ping()
        own_redis.stop()

        for _ in range(2):  # over a connection that was there before; and over one that must be made
            started = time.monotonic()
            with pytest.raises(redis.ConnectionError):
                client.ping()
            assert time.monotonic() - started < 2.5


def test_a_wrong_password_is_not_waited_for(own_redis: EmbeddedRedis) -> None:
    url = f"redis://:wrong@127.0.0.1:{own_redis.port}/0"
    with ResilientRedis.from_url(url) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_a_wrong_command_is_not_tried_again(own_redis: EmbeddedRedis) -> None:
    with ResilientRedis.from_url(own_redis.url) as client:
        client.set("text", "no list")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.lpush("text", "1")


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_refuses_is_waited_for(
    own_redis: EmbeddedRedis, starter: ThreadPoolExecutor, refusal: Refusal
) -> None:
    asks = [write, write_all_or_nothing, write_one_by_one, write_by_script]
    if refusal is not full:  # which always lets take away
        asks.append(pop)
    with contextlib.ExitStack() as clients:
        commands = [
            partial(ask, clients.enter_context(ResilientRedis.from_url(own_redis.url)), str(number))
            for number, ask in enumerate(asks)
        ]
        with redis.Redis.from_url(own_redis.url) as operator:
            operator.rpush("list", "1", "2")
        for command in commands:
            command()
        with ThreadPoolExecutor(len(asks)) as pool:
            with refusal(own_redis), make_redis(own_redis.url) as impatient:
                for ask in asks:
                    with pytest.raises(redis.RedisError) as refused:
                        ask(impatient, "impatient")
                    assert is_refusal(refused.value), refused.value
                answers = [pool.submit(command) for command in commands]
                time.sleep(0.5)  # several tries
                assert not any(answer.done() for answer in answers)
            for answer in answers:
                assert answer.result(20)


def write(client: redis.Redis, key: str) -> object:
    return client.set(key, "1")


def write_all_or_nothing(client: redis.Redis, key: str) -> object:
    with client.pipeline() as pipeline:
        return pipeline.set(key, "1").get(key).execute()


def write_one_by_one(client: redis.Redis, key: str) -> object:
    with client.pipeline(transaction=False) as pipeline:
        return pipeline.set(key, "1").get(key).execute()


def write_by_script(client: redis.Redis, key: str) -> object:
    return client.register_script("return redis.call('SET', KEYS[1], '1')")(keys=[key])


def pop(client: redis.Redis, key: str) -> object:
    return client.blpop([key, "list"])


def test_a_server_that_loads_its_data_is_waited_for(tmp_path: Path, starter: ThreadPoolExecutor) -> None:
    slow = ConfiguredRedis(tmp_path / "slow-redis", "--key-load-delay", "150", persistent=True)
    starter.submit(slow.start).result()
    with redis.Redis.from_url(slow.url) as operator, operator.pipeline(transaction=False) as pipeline:
        for number in range(20_000):
            pipeline.rpush("list", number)
        pipeline.execute()
    starter.submit(slow.restart).result()

    with contextlib.closing(make_redis(slow.url, 5.0)) as impatient, pytest.raises(redis.BusyLoadingError):
        impatient.ping()
    with ResilientRedis.from_url(slow.url) as client:
        assert client.llen("list") == 20_000

    slow.stop()


def test_a_cluster_that_is_down_is_waited_for(tmp_path: Path, starter: ThreadPoolExecutor) -> None:
    cluster = ConfiguredRedis(tmp_path / "cluster", "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    starter.submit(cluster.start).result()
    with ResilientRedis.from_url(cluster.url) as client, redis.Redis.from_url(cluster.url) as operator:
        with pytest.raises(redis.exceptions.ClusterDownError):
            operator.set("a", "1")
        waiting = starter.submit(client.set, "a", "1")
        time.sleep(0.3)  # several tries
        assert not waiting.done()
        operator.execute_command("CLUSTER", "ADDSLOTS", *range(16384))

        assert waiting.result(20)

    cluster.stop()


def test_a_pop_that_a_failover_unblocks_goes_on(own_redis: EmbeddedRedis, starter: ThreadPoolExecutor) -> None:
    with ResilientRedis.from_url(own_redis.url) as client, redis.Redis.from_url(own_redis.url) as operator:
        popped = starter.submit(client.blpop, ["queue"], 30)
        eventually(lambda: operator.info("clients")["blocked_clients"] == 1, what="it waits")
        operator.replicaof("127.0.0.1", free_port())
        operator.replicaof("NO", "ONE")
        operator.rpush("queue", "1")

        assert popped.result(20) == (b"queue", b"1")


def test_a_client_knows_when_its_peer_has_vanished(own_redis: EmbeddedRedis) -> None:
    host_and_port = {"host": "127.0.0.1", "port": own_redis.port, "password": redis_password(own_redis)}
    for client in (ResilientRedis.from_url(own_redis.url), ResilientRedis(**host_and_port)):
        with client:
            connection = client.connection_pool.get_connection()
            assert connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
            assert connection.health_check_interval == HEALTH_CHECK_SECONDS
            client.connection_pool.release(connection)


@pytest.mark.parametrize("query", ["", "?db=3", "?health_check_interval=7&db=3"])
def test_a_plain_client_gets_what_a_url_can_carry(own_redis: EmbeddedRedis, query: str) -> None:
    with redis.Redis.from_url(with_endurance(own_redis.url + query)) as client:
        options = client.connection_pool.connection_kwargs
        assert options["health_check_interval"] == (7 if "7" in query else HEALTH_CHECK_SECONDS)
        assert options["db"] == (3 if "db" in query else 0)
        assert client.set("a", "1")
        own_redis.stop()
        own_redis.start()  # the connection is gone, and nobody has noticed
        assert client.set("a", "2")


def redis_password(server: EmbeddedRedis) -> str:
    return str(redis.Redis.from_url(server.url).connection_pool.connection_kwargs["password"])


# -- a whole worker


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[EmbeddedServers, Connections, Stack]]:
    """Servers that a test may stop, and processes that use them."""
    with EmbeddedServers(tmp_path / "own", persistent=False) as servers:
        engine = make_engine(servers.database_url, "template")
        upgrade(engine)
        engine.dispose()
        made = configure(Settings(database_url=servers.database_url, redis_url=servers.redis_url))
        environment = {
            "JOBLEDGER_DATABASE_URL": servers.database_url,
            "JOBLEDGER_REDIS_URL": servers.redis_url,
            "JOBLEDGER_JOB_MODULES": "sample_jobs",
        }
        with stack(environment, tmp_path) as system:
            yield servers, made, system
        made.close()


@contextlib.contextmanager
def stopped(servers: EmbeddedServers) -> Iterator[None]:
    servers.redis.stop()
    try:
        yield
    finally:
        servers.redis.start()


@contextlib.contextmanager
def frozen(servers: EmbeddedServers) -> Iterator[None]:
    process = psutil.Process(servers.redis.pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def refusing(refusal: Refusal) -> Callable[[EmbeddedServers], contextlib.AbstractContextManager[None]]:
    return lambda servers: refusal(servers.redis)


@pytest.mark.parametrize(
    "outage", [stopped, frozen, *(pytest.param(refusing(one), id=one.__name__) for one in REFUSALS)]
)
def test_a_busy_worker_survives_an_outage_and_takes_the_next_job(
    own: tuple[EmbeddedServers, Connections, Stack], tmp_path: Path, outage: object
) -> None:
    servers, connections, system = own
    worker = system.start(
        sys.executable, "-m", "jobledger", "worker", "default", "--", "--job-monitoring-interval", "1",
    )  # fmt: skip
    eventually(lambda: "Listening on" in worker.output(), 60, "the worker's start")
    release = tmp_path / "release"
    job = Reports.dispatch(release_file=str(release))
    eventually(lambda: any(one.progress_note for one in job.attempts), 60, "the job's beginning")

    with outage(servers):  # type: ignore[operator]
        time.sleep(OUTAGE_SECONDS)  # the outage itself, over several of the worker's heartbeats
        release.touch()
        assert job.wait(20).status is JobStatus.COMPLETED
        assert worker.popen.poll() is None, worker.output()

    healed = time.monotonic()
    eventually(lambda: answers(connections), 10, "Redis answers")
    assert Echo.dispatch().wait(15).status is JobStatus.COMPLETED
    assert time.monotonic() - healed < 15
    assert [one.outcome for one in job.attempts] == ["completed"]
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0, worker.output()


def answers(connections: Connections) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(connections.redis.ping())
    return False
