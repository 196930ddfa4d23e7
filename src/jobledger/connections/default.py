"""The connections of a process: one SQLAlchemy engine and one Redis client, made at first use, safe across fork.

`configure()` says what the process-wide default is; without it the settings decide at first use. A forked child
(RQ's work-horse) never shares a socket with its parent: both are made anew there.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

import psycopg2
import redis
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import PoolProxiedConnection

from jobledger.connections.deadlines import within
from jobledger.connections.postgres import first_line, make_engine, replace_ended, unavailable_as_error
from jobledger.connections.redis import MAINTENANCE_REDIS_DEADLINE_SECONDS, CircuitBreaker, make_redis
from jobledger.errors import JobledgerError, LedgerUnavailable
from jobledger.settings import Settings, load_settings

POOL_TIMEOUT_SECONDS: Final = 2.0


class Connections:
    """Where a process finds Postgres and Redis.

    Args:
        settings: URLs and all else.
        application_name: what `pg_stat_activity` shows.
    """

    def __init__(self, settings: Settings, application_name: str = "jobledger") -> None:
        self.settings = settings
        self.application_name = application_name
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._engine: Engine | None = None
        self._redis: redis.Redis | None = None
        self._maintenance_redis: redis.Redis | None = None
        self._wrapping: Engine | None = None
        self._wrapped: Any = None
        _process.connections.add(self)

    @property
    def engine(self) -> Engine:
        """The pooled engine; connects when first used."""
        with self._lock:
            self._forget_parent()
            if self._engine is None:
                url = self.settings.require_database_url()
                self._engine = make_engine(url, self.application_name, pool_timeout=POOL_TIMEOUT_SECONDS)
                sa.event.listen(self._engine, "checkout", replace_ended)
            return self._engine

    @property
    def maintenance_redis(self) -> redis.Redis:
        """The client for repair and the doctor: it gives up after 2 s, each time, and never sends anything twice."""
        with self._lock:
            self._forget_parent()
            if self._maintenance_redis is None:
                url = self.settings.require_redis_url()
                self._maintenance_redis = make_redis(url, MAINTENANCE_REDIS_DEADLINE_SECONDS)
            return self._maintenance_redis

    @property
    def redis(self) -> redis.Redis:
        """The client for wake-ups: it gives up after 0.3 s and never sends anything twice.

        After two failures in a row it gives up at once for a second: many dispatches do not wait one after another.
        """
        with self._lock:
            self._forget_parent()
            if self._redis is None:
                self._redis = make_redis(self.settings.require_redis_url(), retry=CircuitBreaker())
            return self._redis

    @contextmanager
    def transaction(self, deadline_seconds: float | None = None) -> Iterator[Connection]:
        """One READ COMMITTED transaction on a pooled connection: committed at the end, rolled back on error.

        Args:
            deadline_seconds: the longest that all of it may take; a frozen server counts as away then. Connecting
                counts too, but libpq gives it up after 2 s at the earliest.

        Raises:
            LedgerUnavailable: Postgres cannot be reached, went away, or did not answer in time.
        """
        began = time.monotonic()
        with unavailable_as_error(), self.engine.connect() as connection:
            left = None if deadline_seconds is None else began + deadline_seconds - time.monotonic()
            with within(connection, left), connection.begin():
                yield connection

    def raw_connection(self) -> PoolProxiedConnection:
        """A pooled connection as the driver has it.

        Raises:
            LedgerUnavailable: Postgres cannot be reached.
        """
        with unavailable_as_error():
            try:
                return self.engine.raw_connection()
            except psycopg2.OperationalError as error:  # here SQLAlchemy passes the driver's own error on
                raise LedgerUnavailable(f"Postgres is away: {first_line(error)}") from error

    def wrap(self, raw: Any, connection_class: type[Connection] = Connection) -> Connection:
        """A driver's connection as SQLAlchemy has it, on an engine that opens none of its own.

        The caller that made the connection closes it.
        """
        with self._lock:
            self._forget_parent()
            if self._wrapping is None:
                self._wrapping = make_engine(
                    self.settings.require_database_url(),
                    self.application_name,
                    poolclass=sa.NullPool,
                    creator=self._take_wrapped,
                )
            self._wrapped = raw
            connection = connection_class(self._wrapping)
            Connection.detach(connection)
            return connection

    def _take_wrapped(self) -> Any:
        """Hand a wrapped connection out once: a second owner would close it, or commit what the first one wrote."""
        raw, self._wrapped = self._wrapped, None
        if raw is None:
            raise JobledgerError(
                "The engine of a job's session opens no connection of its own. Use self.session, "
                "self.session.connection() or an engine that you made."
            )
        return raw

    def close(self) -> None:
        """Close what this process opened. The object may be used again."""
        with self._lock:
            self._forget_parent()
            if self._engine is not None:
                self._engine.dispose()
            for client in (self._redis, self._maintenance_redis):
                if client is not None:
                    client.close()
            self._engine = self._redis = self._maintenance_redis = self._wrapping = self._wrapped = None

    def _renew_lock(self) -> None:
        """In a forked child: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()

    def _forget_parent(self) -> None:
        if self._pid == os.getpid():
            return
        if self._engine is not None:
            self._engine.dispose(close=False)  # the sockets are the parent's; the compiled SQL stays useful
        self._redis = self._maintenance_redis = None
        self._pid = os.getpid()


class _Process:
    """What is one per process: the default connections; and which others there are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.default: Connections | None = None
        self.connections: WeakSet[Connections] = WeakSet()

    def renew_locks(self) -> None:
        """In a forked child."""
        self.lock = threading.Lock()
        for one in list(self.connections):
            one._renew_lock()


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.renew_locks)


def configure(settings: Settings | None = None, **values: Any) -> Connections:
    """Say which database and Redis this process uses by default.

    Args:
        settings: complete settings; or
        **values: single ones over the environment, such as `database_url=…`, `redis_url=…`, `lease_seconds=…`.

    Raises:
        ConfigurationError: a value is wrong.
    """
    connections = Connections(settings or load_settings(**values))
    with _process.lock:
        previous, _process.default = _process.default, connections
    if previous is not None:
        previous.close()
    return connections


def default_connections() -> Connections:
    """The process's default, made from the environment's settings if `configure()` was not called.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    with _process.lock:
        if _process.default is None:
            _process.default = Connections(load_settings())
        return _process.default
