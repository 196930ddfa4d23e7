"""A Postgres connection that a worker keeps ready for its next work-horse.

A stock worker forks a process for each job, and a new Postgres session for each process costs more than the job's
own statements: a backend process, and the catalogue read anew. So the worker's parent process connects, the work-horse
inherits the connection and is its only user while it lives, and hands it back if it can. One work-horse lives at a
time; the parent itself never speaks on the connection.

A byte of shared memory says whether the connection may be used again. It may if the work-horse said so at its end: it
was idle, outside a transaction, and the job never asked for its session (which could have left settings or temporary
tables). After a killed work-horse nobody says so: the parent cuts the connection before the next fork, and the reaper
ends its session before the job runs again. A connection with TLS cannot be shared, for its keys move on with each
message; then each work-horse connects for itself.
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
        """The session of the spare, which the parent has asked for."""
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
        """Before a fork, in the parent: check the spare, and make another one if it will not do."""
        if os.getpid() != self._owner:
            return
        if self._raw is not None and not self._is_clean():
            self._discard()
        if self._raw is None and time.monotonic() >= self._not_before:
            self._connect()

    def take(self) -> Any:
        """In a work-horse: the spare, as psycopg2 has it; None if there is none, and it must connect for itself."""
        if self._raw is None or os.getppid() != self._owner or self._state[:] != _CLEAN:
            return None
        self._state[:] = _IN_USE
        return self._raw

    def give_back(self) -> None:
        """In the work-horse, as its last word on the connection: the next one may use it."""
        if self._raw.info.transaction_status == _IDLE:
            self._state[:] = _CLEAN

    def abandon(self) -> None:
        """In a forked process that is no work-horse: let go of the socket, and say nothing over it."""
        if self._raw is not None and not self._raw.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._raw.fileno(), inheritable=False)
            os.close(nowhere)

    def _connect(self) -> None:
        try:
            raw = self._open()
        except (LedgerUnavailable, DBAPIError, psycopg2.Error) as error:  # away, or not migrated yet: ask again later
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
            self._connections.wrap(raw)  # SQLAlchemy learns the ways of this server, once for all work-horses
        except BaseException:
            raw.close()
            raise
        return raw

    def _is_clean(self) -> bool:
        poll = select.poll()
        poll.register(self._raw.fileno(), select.POLLIN)
        return self._state[:] == _CLEAN and not poll.poll(0)  # readable: the server has closed it, or says something

    def _discard(self) -> None:
        """End it for all who hold it; what a killed work-horse had sent of a message must not be completed by ours."""
        with suppress(psycopg2.Error):
            shut(self._raw.fileno())
        self._raw.close()
        self._raw = None


class _Worker:
    """What is one per worker process and its work-horses."""

    spare: SpareConnection | None = None


_worker: Final = _Worker()


def spare_of_this_worker() -> SpareConnection | None:
    """The spare connection, if this process was forked by a worker that keeps one."""
    return _worker.spare


def for_work_horses(raw: Any) -> Direct:
    """A psycopg2 connection for the two statements of a run that are executed for every job.

    On connections that live long they are worth preparing: see `warm_up`.
    """
    return Direct(raw, {CLAIM: "jobledger_claim", COMPLETE: "jobledger_complete"})


def warm_up(connection: Direct) -> None:
    """Prepare what a run will do, and do it for a job that cannot be: what it takes is then ready.

    Raises:
        psycopg2.Error: the schema is not there yet.
    """
    connection.prepare()
    nobody = UUID(int=0)
    claim(connection, nobody, Runner("", "", 0, ""), 0.0)
    complete(connection, nobody, 0, None, Evidence())
