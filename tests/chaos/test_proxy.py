"""What the proxy does to a real Redis and a real Postgres behind it."""

import socket
import time
from collections.abc import Iterator

import psycopg2
import pytest
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness import eventually
from jobledger.embedded import EmbeddedServers
from proxy import Proxy

pytestmark = pytest.mark.timed

LARGE = b"x" * 3_000_000
"""More than the buffers of all sockets on the way hold."""


@pytest.fixture
def proxy(servers: EmbeddedServers, redis_url: str) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", servers.redis.port, seed=1) as running:
        yield running


@pytest.fixture
def through(proxy: Proxy, redis_url: str) -> Iterator[redis.Redis]:
    """A client that goes through the proxy, waits at most a second, and sends nothing twice."""
    url = redis_url.rpartition("@")[0] + f"@127.0.0.1:{proxy.port}/0"
    with redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
        yield client


@pytest.fixture
def direct(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_pass_passes_everything_on(proxy: Proxy, through: redis.Redis) -> None:
    through.set("large", LARGE)
    assert through.get("large") == LARGE
    assert proxy.accepted == 1


def test_the_end_of_a_client_reaches_the_server(through: redis.Redis, direct: redis.Redis) -> None:
    through.client_setname("through")
    assert "through" in names(direct)
    through.close()
    eventually(lambda: "through" not in names(direct))


def test_a_cut_resets_old_and_new_connections_until_it_heals(proxy: Proxy, through: redis.Redis) -> None:
    through.ping()
    proxy.mode("cut")
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            through.ping()
    with socket.create_connection(("127.0.0.1", proxy.port)) as fresh, pytest.raises(ConnectionResetError):
        fresh.recv(1)
    proxy.mode("pass")
    assert through.ping()


def test_a_freeze_holds_back_both_directions_and_new_connections(
    proxy: Proxy, through: redis.Redis, direct: redis.Redis
) -> None:
    channel = through.pubsub()
    channel.subscribe("news")
    assert channel.get_message(timeout=5)
    through.ping()
    proxy.mode("freeze")
    direct.publish("news", "held back")
    with pytest.raises(redis.TimeoutError):
        through.set("held", 1)
    with pytest.raises(redis.TimeoutError):
        through.ping()  # by a new connection
    assert channel.get_message(timeout=0.2) is None
    assert not direct.exists("held")

    proxy.mode("pass")
    message = eventually(lambda: channel.get_message(timeout=1))
    assert message["data"] == b"held back"
    eventually(lambda: direct.exists("held"))
    assert through.ping()
    channel.close()


def test_a_cut_ends_a_freeze(proxy: Proxy, through: redis.Redis) -> None:
    through.ping()
    proxy.mode("freeze")
    proxy.mode("cut")
    with pytest.raises(redis.ConnectionError):
        through.ping()


def test_a_delay_is_taken_by_each_direction(proxy: Proxy, through: redis.Redis) -> None:
    through.ping()
    proxy.mode("delay:0.2")
    began = time.monotonic()
    through.ping()
    assert 0.4 <= time.monotonic() - began < 1
    proxy.mode("pass")
    began = time.monotonic()
    through.ping()
    assert time.monotonic() - began < 0.2


def test_what_comes_after_a_delay_overtakes_nothing(proxy: Proxy, redis_url: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Proxy(*listener.getsockname()) as other, socket.create_connection(("127.0.0.1", other.port)) as says:
        hears, _ = listener.accept()
        with hears:
            other.mode("delay:0.3")
            says.sendall(b"first ")
            eventually(lambda: other.links and next(iter(other.links)).client._due)
            other.mode("pass")
            says.sendall(b"second")
            heard = b""
            while len(heard) < 12:
                heard += hears.recv(64)
    assert heard == b"first second"


def test_some_replies_are_lost_after_the_server_has_worked(
    proxy: Proxy, through: redis.Redis, direct: redis.Redis
) -> None:
    through.ping()
    proxy.mode("drop_replies:0.1")
    answered = lost = 0
    for _ in range(200):
        try:
            through.incr("counter")
            answered += 1
        except redis.ConnectionError:
            lost += 1
    assert proxy.swallowed == lost
    assert 20 < lost < 110  # a new connection says hello before it asks, and may lose that too
    assert answered <= int(direct.get("counter") or 0) <= answered + lost


def test_the_same_seed_loses_the_same_replies(servers: EmbeddedServers, redis_url: str) -> None:
    def fates() -> list[bool]:
        with Proxy("127.0.0.1", servers.redis.port, seed=7) as one:
            one.mode("drop_replies:0.5")
            return [is_answered(one.port) for _ in range(40)]

    first = fates()
    assert first == fates()
    assert True in first
    assert False in first


def test_the_reply_to_one_request_is_lost(proxy: Proxy, through: redis.Redis, direct: redis.Redis) -> None:
    dropped = proxy.drop_next_reply(b"EXEC")
    through.set("before", 1)
    assert not dropped.is_set()
    with through.pipeline() as pipeline:
        pipeline.rpush("list", "once")
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
    assert dropped.wait(5)
    assert direct.lrange("list", 0, -1) == [b"once"]
    with through.pipeline() as pipeline:
        pipeline.rpush("list", "again")
        assert pipeline.execute() == [2]


def test_a_commit_whose_reply_is_lost_has_happened(servers: EmbeddedServers, database_url: str) -> None:
    url = sa.make_url(database_url)
    with Proxy("127.0.0.1", servers.postgres.port) as proxy:
        connection = psycopg2.connect(
            host="127.0.0.1", port=proxy.port, user=url.username, password=url.password, dbname=url.database
        )
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE happened ()")
        dropped = proxy.drop_next_reply(b"COMMIT")
        with pytest.raises(psycopg2.OperationalError):
            connection.commit()
        assert dropped.wait(5)
        connection.close()
    engine = sa.create_engine(database_url)
    assert sa.inspect(engine).has_table("happened")
    engine.dispose()


def test_a_server_that_is_away_resets_its_clients(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        Proxy("127.0.0.1", port) as other,
        socket.create_connection(("127.0.0.1", other.port)) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)


def test_closing_ends_all_connections_and_frees_the_port(proxy: Proxy, through: redis.Redis) -> None:
    through.ping()
    proxy.close()
    proxy.close()
    with pytest.raises(redis.ConnectionError):
        through.ping()
    socket.create_server(("127.0.0.1", proxy.port)).close()


@pytest.mark.parametrize("name", ["", "slow", "delay", "drop_replies", "pass:1", "delay:much"])
def test_a_mode_that_does_not_exist_is_refused(proxy: Proxy, name: str) -> None:
    with pytest.raises(ValueError, match="delay"):
        proxy.mode(name)


def is_answered(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PING\r\n")
        try:
            return bool(connection.recv(64))
        except ConnectionResetError:
            return False


def names(client: redis.Redis) -> list[str]:
    return [one["name"] for one in client.client_list()]
