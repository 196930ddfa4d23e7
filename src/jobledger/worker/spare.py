"""A Postgres connection that a worker keeps ready for its next work-horse.

A stock worker forks a process for each job, and a new Postgres session for each process costs more than the ledger's
statements: a backend process, and the catalogue read anew. So the worker's parent process connects, the work-horse
inherits the connection and is its only user while it lives, and hands it back if it can. One work-horse lives at a
time; the parent itself sends nothing over the connection.

A byte of shared memory says whether the connection may be used again. A work-horse sets it at its end, if the
connection is idle, outside a transaction, and the job never used its session (which could have left settings or
temporary tables). A killed work-horse does not set it: the parent cuts the connection before the next fork, and the
end of the attempt ends its session before the job runs again. A connection with TLS cannot be shared, because its keys
change with each message; then each work-horse connects for itself.
"""

import mmap
import os
import select
import time
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import psycopg2
from sqlalchemy.exc import DBAPIError

from jobledger.connections.deadlines import shut
from jobledger.connections.default import Connections
from jobledger.connections.sessions import require_sessions
from jobledger.domain.records import Backend, Evidence, Runner
from jobledger.errors import ConfigurationError, LedgerUnavailable
from jobledger.ledger import leases
from jobledger.ledger.direct import Direct
from jobledger.ledger.moves.claim import CLAIM, claim
from jobledger.ledger.moves.finish import COMPLETE, complete
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

PAUSE_AFTER_FAILURE_SECONDS: Final = 5.0
_CLEAN: Final = b"\x01"
_IN_USE: Final = b"\x00"
_IDLE: Final = 0  # PQTRANS_IDLE, libpq-fe.h


class SpareConnection:
    """The spare connection of one worker's parent process.

    Args:
        connections: of the parent.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._owner = os.getpid()
        self._raw: Any = None
        self._backend: Backend | None = None
        self._state = mmap.mmap(-1, 1)
        self._not_before = 0.0

    @property
    def backend(self) -> Backend | None:
        """The session of the spare connection."""
        return self._backend

    def keep_ready(self) -> None:
        """Have a spare ready whenever this process forks; call it once, in the worker's parent.

        Raises:
            ConfigurationError: there is a pooler that gives each transaction another session.
        """
        self.prepare()
        os.register_at_fork(before=self.prepare)
        _worker.spare = self

    def prepare(self) -> None:
        """Before a fork, in the parent: check the spare, and replace it if it cannot be used."""
        if os.getpid() != self._owner:
            return
        if self._raw is not None and not self._is_clean():
            self._discard()
        if self._raw is None and time.monotonic() >= self._not_before:
            self._connect()

    def take(self) -> Any:
        """In a work-horse: the spare, a psycopg2 connection; None if there is none."""
        if self._raw is None or os.getppid() != self._owner or self._state[:] != _CLEAN:
            return None
        self._state[:] = _IN_USE
        return self._raw

    def give_back(self) -> None:
        """In the work-horse, as its last use of the connection: let the next work-horse use it."""
        if self._raw.info.transaction_status == _IDLE:
            self._state[:] = _CLEAN

    def abandon(self) -> None:
        """In a forked process that is no work-horse: close the socket without a word to the server."""
        if self._raw is not None and not self._raw.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._raw.fileno(), inheritable=False)
            os.close(nowhere)

    def _connect(self) -> None:
        try:
            raw = self._open()
        except (LedgerUnavailable, DBAPIError, psycopg2.Error) as error:  # away, or not migrated yet: try again later
            log.warning("No spare connection", error=str(error).strip(), wait_seconds=PAUSE_AFTER_FAILURE_SECONDS)
            self._not_before = time.monotonic() + PAUSE_AFTER_FAILURE_SECONDS
            return
        except ConfigurationError as error:
            if _worker.spare is self:  # the worker is at work; its work-horses say so, too, and run nothing
                log.error("No spare connection", error=str(error), wait_seconds=PAUSE_AFTER_FAILURE_SECONDS)
                self._not_before = time.monotonic() + PAUSE_AFTER_FAILURE_SECONDS
                return
            raise
        if raw.info.ssl_in_use:
            raw.close()
            self._not_before = float("inf")
            return
        self._raw = raw
        self._state[:] = _CLEAN

    def _open(self) -> Any:
        pooled = self._connections.raw_connection()
        raw: Any = pooled.dbapi_connection
        pooled.detach()
        try:
            raw.autocommit = True
            self._backend = leases.this_backend(Direct(raw))
            if self._backend.pid != raw.info.backend_pid:  # there is a pooler
                require_sessions(self._connections, "workers need")
            warm_up(for_work_horses(raw))
            self._connections.wrap(raw)  # SQLAlchemy asks for the server's settings, once for all work-horses
        except BaseException:
            raw.close()
            raise
        return raw

    def _is_clean(self) -> bool:
        poll = select.poll()
        poll.register(self._raw.fileno(), select.POLLIN)
        return self._state[:] == _CLEAN and not poll.poll(0)  # readable: the server has closed it, or sent something

    def _discard(self) -> None:
        """End it for all processes that have it: a killed work-horse may have sent half a message."""
        with suppress(psycopg2.Error):
            shut(self._raw.fileno())
        self._raw.close()
        self._raw = None


class _Worker:
    """The state of a worker process and its work-horses."""

    spare: SpareConnection | None = None


_worker: Final = _Worker()


def spare_of_this_worker() -> SpareConnection | None:
    """The spare connection, if this process was forked by a worker that keeps one."""
    return _worker.spare


def for_work_horses(raw: Any) -> Direct:
    """A psycopg2 connection for the two statements that every job needs.

    They are prepared on connections that live long: see `warm_up`.
    """
    return Direct(raw, {CLAIM: "jobledger_claim", COMPLETE: "jobledger_complete"})


def warm_up(connection: Direct) -> None:
    """Prepare the statements of a run, and execute them for a job that does not exist, so that the caches are warm.

    Raises:
        psycopg2.Error: the schema is not migrated yet.
    """
    connection.prepare()
    no_job = UUID(int=0)
    claim(connection, no_job, Runner("", "", 0, ""), 0.0)
    complete(connection, no_job, 0, None, Evidence())
