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

    binaries       which programs run, and as whom
    server         one server process and its directory
    lock           who works on a directory
    descriptors    files as open descriptors
    postgres       what is special about Postgres
    redis_server   what is special about Redis
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
