"""Embedded Redis and Postgres servers, for `python -m jobledger up`, the demo and the tests. Linux only.

A server is a child of the process that starts it, and ends when that process stops it or dies: the kernel then signals
the server (PR_SET_PDEATHSIG). For the kernel, the parent is the *thread* that started the server. So start servers from
the main thread, or from a thread that lives as long as they do.

A server has a directory with `data/`, `log` and `lock`. The server and every process that it forks inherit a descriptor
of `lock` with the flock on it. So the lock is taken exactly as long as any process works on the data, which no pid file
can guarantee. `lock` also names the server and the process that started it, each by pid and start time, so that another
process with a reused pid is never mistaken for them.

Started by root, a server runs as `nobody` (Postgres refuses root), or as the owner of its existing data. That account
may be unable to reach the data by path, because a directory above (such as /root) is closed to it. So it gets an open
descriptor of its data directory, and the permissions of the directories above stay unchanged.

    binaries       the programs and their accounts
    server         one server process and its directory
    lock           the lock on a directory
    descriptors    files as open descriptors
    postgres       Postgres
    redis_server   Redis
"""

from pathlib import Path
from typing import Self

from jobledger.embedded.binaries import OLDEST_POSTGRES, EmbeddedServerError, find_postgres, find_redis_server
from jobledger.embedded.postgres import EmbeddedPostgres
from jobledger.embedded.redis_server import EmbeddedRedis
from jobledger.embedded.server import START_SECONDS, free_port

__all__ = [
    "OLDEST_POSTGRES",
    "START_SECONDS",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "EmbeddedServerError",
    "EmbeddedServers",
    "find_postgres",
    "find_redis_server",
    "free_port",
]


class EmbeddedServers:
    """An embedded Redis and an embedded Postgres, started and stopped together. A context manager.

    Args:
        directory: directory of all their files, in `redis/` and `postgres/`; made if missing.
        persistent: False for throw-away servers: Redis keeps nothing between starts.
        max_connections: `max_connections` of Postgres.
    """

    def __init__(self, directory: Path, *, persistent: bool = True, max_connections: int = 200) -> None:
        self.postgres = EmbeddedPostgres(directory / "postgres", persistent=persistent, max_connections=max_connections)
        self.redis = EmbeddedRedis(directory / "redis", persistent=persistent)

    @property
    def database_url(self) -> str:
        """URL of the database `jobledger`, for SQLAlchemy, password included."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """URL of Redis database 0, password included."""
        return self.redis.url

    def start(self) -> None:
        """Start both and wait until they answer; if one does not start, stop the other.

        Raises:
            EmbeddedServerError: no binaries, the directory is in use, or a server did not start.
        """
        try:
            self.postgres.start()
            self.redis.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both in order and wait for their last processes. Idempotent.

        Raises:
            EmbeddedServerError: a process of a server survived SIGKILL.
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
