"""An embedded Redis."""

import contextlib
import secrets
import signal
import subprocess
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobledger.embedded.binaries import find_redis_server, runnable_redis
from jobledger.embedded.descriptors import memory_file
from jobledger.embedded.server import ADDRESS, Server


class EmbeddedRedis(Server):
    """An embedded Redis; each object makes a new random password.

    Args:
        directory: directory of its data, log and lock; made if missing.
        persistent: keep an append-only file. Without it, every start begins empty.
        binary: the `redis-server` to run; None for the result of `find_redis_server()`.
    """

    _stop_signals = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))

    def __init__(self, directory: Path, *, persistent: bool = True, binary: Path | None = None) -> None:
        super().__init__(directory)
        self._persistent = persistent
        self._binary = binary
        self._password = secrets.token_hex(32)

    @property
    def url(self) -> str:
        """URL of database 0, password included."""
        return f"redis://:{self._password}@{ADDRESS}:{self.port}/0"

    def _prepare(self, lock: int) -> None:
        self._runnable = runnable_redis(self._binary or find_redis_server(), self._account)
        self._make_directory(self._data)

    def _spawn(self, port: int, lock: int) -> subprocess.Popen[bytes]:
        config = f"""
            bind {ADDRESS}
            port {port}
            protected-mode yes
            requirepass {self._password}
            maxmemory-policy noeviction
            appendonly {"yes" if self._persistent else "no"}
            save ""
        """
        with memory_file(config) as stdin:  # so that neither `ps` nor a file shows the password
            return self._popen([self._runnable, "-"], cwd=self._data, stdin=stdin, fds=[lock])

    def _answers(self, port: int) -> bool:
        no_retry = Retry(NoBackoff(), 0)
        client = redis.Redis(ADDRESS, port, password=self._password, socket_timeout=2.0, retry=no_retry)
        with contextlib.closing(client), contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        return False
