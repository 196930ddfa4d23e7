"""An embedded Postgres."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from jobledger.embedded.binaries import EmbeddedServerError, find_postgres, postgres_major, runnable_postgres
from jobledger.embedded.descriptors import memory_file, opened
from jobledger.embedded.server import ADDRESS, Server

_DATABASE: Final = "jobledger"
_SUPERUSER: Final = "jobledger"


class EmbeddedPostgres(Server):
    """An embedded Postgres, with the superuser and database `jobledger`. It never runs without fsync.

    Args:
        directory: directory of its data, password (mode 0600), log and lock; made if missing.
        persistent: False creates a *new* data directory without syncing it to disk; a power loss may destroy it.
        max_connections: as in postgresql.conf.
        bin_dir: directory of `postgres` and `initdb`; None for the result of `find_postgres()`.
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
        """URL of the database `jobledger`, for SQLAlchemy, password included."""
        return self.url_for(_DATABASE)

    def url_for(self, name: str) -> str:
        """The URL of another database on this server."""
        return f"postgresql+psycopg2://{_SUPERUSER}:{self._password}@{ADDRESS}:{self.port}/{name}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create an empty database, or a copy of `template`, which must have no sessions meanwhile."""
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
            host=ADDRESS, port=port, user=_SUPERUSER, password=self._password, dbname=name, connect_timeout=2
        )

    def _prepare(self, lock: int) -> None:
        self._runnable = runnable_postgres(self._bin_dir or find_postgres(), self._account)
        if not self._data.exists():
            self._initialise(lock)
        self._password = self._password_path.read_text()
        # The lock is ours, so no process of the old server lives. Postgres checks only the pid in this file, and would
        # not start if another process had got that pid since.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, lock: int) -> None:
        """Make the data directory, atomically."""
        scratch = self.directory / "data.new"
        shutil.rmtree(scratch, ignore_errors=True)
        self._make_directory(scratch)
        password = secrets.token_hex(32)
        with opened(self._password_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            os.write(file, password.encode())
        options = [f"--username={_SUPERUSER}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        if postgres_major(self._runnable) >= 16:
            # Iterations slow down guessing, which 256 random bits make impossible anyway, and every login. Each job has
            # a login, because its process connects anew.
            options += ["--set=scram_iterations=1"]
        if not self._persistent:
            options += ["--no-sync"]  # the data is thrown away anyway
        with memory_file(password) as pwfile:
            self._run_on(scratch, ["initdb", *options, f"--pwfile=/proc/self/fd/{pwfile}"], fds=[lock, pwfile])
        with memory_file(f"CREATE DATABASE {_DATABASE}") as stdin:
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
        """Start a program of Postgres on a data directory that its account may be unable to reach by path."""
        program, *arguments = command
        with opened(data, os.O_PATH) as fd:
            return self._popen(
                [self._runnable / program, *arguments],
                cwd="/",  # before version 16, Postgres must be able to return to its start directory by path
                stdin=stdin,
                fds=[*fds, fd],
                environment={"PGDATA": f"/proc/self/fd/{fd}" if self._account else str(data)},
            )

    def _spawn(self, port: int, lock: int) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": ADDRESS,
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
