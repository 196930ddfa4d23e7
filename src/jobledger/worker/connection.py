"""The Postgres connection of an attempt, for its job's session and its finishing statement.

In a work-horse it is also used for the claim: it is the worker's spare connection, if there is one, or a pooled one.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

import psycopg2
import sqlalchemy as sa
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE, TRANSACTION_STATUS_IDLE
from sqlalchemy.engine import Connection

from jobledger.connections.deadlines import shut
from jobledger.connections.default import Connections
from jobledger.connections.postgres import raise_if_lost
from jobledger.connections.sessions import has_sessions
from jobledger.domain.records import Backend
from jobledger.errors import JobledgerError, LedgerUnavailable
from jobledger.failpoints import Failpoint, is_planned, reach_with_commit_sent
from jobledger.ledger import leases
from jobledger.ledger.direct import Direct, DirectRows
from jobledger.worker.spare import SpareConnection, for_work_horses
from jobledger.worker.statements import ends_transaction

_BACKEND: Final = "jobledger_backend"
"""The key in a pooled connection's `info` for its session, which is asked for once."""


class TransactionMisused(JobledgerError):
    """A job has tried to end the transaction that its finishing statement commits."""


class RunConnection:
    """Open during one attempt, or from the first use of its session on.

    Args:
        connections: the process's servers.
        spare: the worker's spare connection, if the worker keeps one.

    Attributes:
        backend: the session of Postgres.

    Raises:
        LedgerUnavailable: Postgres is away, or behind a pooler that gives each transaction another session.
    """

    def __init__(self, connections: Connections, spare: SpareConnection | None) -> None:
        self._connections = connections
        self._spare = spare
        self._pooled: Any = None
        self._session_connection: Connection | None = None
        self.raw: Any = spare.take() if spare is not None else None
        if spare is not None and self.raw is not None:
            self.direct = for_work_horses(self.raw)
            self.backend = spare.backend or self._asked_backend()
        else:
            self._spare = None
            self._pooled = connections.raw_connection()
            self.raw = self._pooled.dbapi_connection
            self.direct = Direct(self.raw)
            self.backend = self._known_backend()

    @property
    def committing(self) -> Direct:
        """`direct`, for a statement that is a transaction of its own and completes the job."""
        return _CommitSent(self.direct) if is_planned(Failpoint.COMMIT_SENT) else self.direct

    @property
    def is_gone(self) -> bool:
        """Whether the connection was closed or lost."""
        return bool(self.raw.closed)

    @property
    def is_waiting(self) -> bool:
        """Whether a statement has been sent and its answer is not complete."""
        return bool(self.raw.info.transaction_status == TRANSACTION_STATUS_ACTIVE)

    def autocommit(self) -> None:
        """From now on each statement is a transaction of its own."""
        self.raw.autocommit = True

    def begin(self) -> None:
        """From now on statements belong to one transaction, until `commit` or `rollback`."""
        if self.raw.autocommit:
            self.raw.autocommit = False

    def commit(self) -> None:
        """Commit the writes of the job's session, of the finishing statement, or both.

        Raises:
            LedgerUnavailable: the connection went away; the commit may have happened.
        """
        reach_with_commit_sent(self.raw)
        try:
            self.raw.commit()
        except psycopg2.Error as error:
            raise_if_lost(error)
            raise

    def rollback(self) -> None:
        """Roll back the transaction.

        Raises:
            LedgerUnavailable: the connection went away, and the transaction with it.
        """
        try:
            self.raw.rollback()
        except psycopg2.Error as error:
            raise_if_lost(error)
            raise

    def for_session(self) -> Connection:
        """A SQLAlchemy connection over this one, in one transaction with the finishing statement."""
        if self._session_connection is None:
            self.begin()
            self.direct = Direct(self.raw)  # the job may deallocate prepared statements
            self._session_connection = self._connections.wrap(self.raw, JobConnection)
            self._session_connection.begin()
        return self._session_connection

    def shut(self) -> None:
        """From another thread: end the wait for a server that does not answer. The waiter sees a lost connection."""
        with suppress(psycopg2.Error):  # closed already
            shut(self.raw.fileno())

    def cut(self) -> None:
        """Close it for good: its session ends, and its transaction is rolled back."""
        self.raw.close()
        if self._pooled is not None:
            self._pooled.invalidate()

    def release(self) -> None:
        """Return it after an orderly run: to the worker, if it is unchanged, or to the pool."""
        if self.is_gone:
            return
        if self._session_connection is not None:
            self.cut()  # the job may have left settings or temporary tables in it
        elif self._pooled is not None:
            self.raw.autocommit = False  # as the pool expects it
            self._pooled.close()
        elif self._spare is not None:
            self._spare.give_back()

    def _known_backend(self) -> Backend:
        known: Backend | None = self._pooled.info.get(_BACKEND)
        if known is None:
            known = self._pooled.info[_BACKEND] = self._asked_backend()
        return known

    def _asked_backend(self) -> Backend:
        self.autocommit()
        backend = leases.this_backend(self.direct)
        if backend.pid != self.raw.info.backend_pid and not has_sessions(self._connections):
            self.cut()
            raise LedgerUnavailable("Postgres is behind a pooler in transaction mode: no job is run over it.")
        return backend


class JobConnection(Connection):
    """The result of `self.session.connection()`: a job must not end the transaction of its finish."""

    def commit(self) -> NoReturn:
        """Refused.

        Raises:
            TransactionMisused: always; nothing was committed.
        """
        raise TransactionMisused(_refusal("commit()"))

    def rollback(self) -> NoReturn:
        """Refused.

        Raises:
            TransactionMisused: always; nothing was undone.
        """
        raise TransactionMisused(_refusal("rollback()"))

    def close(self) -> NoReturn:
        """Refused.

        Raises:
            TransactionMisused: always; the connection stays open.
        """
        raise TransactionMisused(_refusal("close()"))

    def detach(self) -> NoReturn:
        """Refused.

        Raises:
            TransactionMisused: always.
        """
        raise TransactionMisused(_refusal("detach()"))

    def invalidate(self, exception: BaseException | None = None) -> None:
        """Refused to a job; SQLAlchemy itself invalidates a lost connection.

        Raises:
            TransactionMisused: the connection is not lost.
        """
        if exception is None:
            raise TransactionMisused(_refusal("invalidate()"))
        super().invalidate(exception)


@sa.event.listens_for(JobConnection, "before_cursor_execute")
def _refuse_end(_connection: Connection, _cursor: Any, statement: str, *_: object) -> None:
    """Refuse a statement of a job that would end the transaction."""
    if ends_transaction(statement):
        raise TransactionMisused(_refusal(f"The statement {statement.strip()[:40]!r}"))


@sa.event.listens_for(JobConnection, "after_cursor_execute")
def _notice_end(_connection: Connection, cursor: Any, statement: str, *_: object) -> None:
    """Raise if a statement has ended the transaction all the same."""
    if cursor.connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
        raise TransactionMisused(_refusal(f"The statement {statement.strip()[:40]!r}"))


@sa.event.listens_for(JobConnection, "commit")
def _refuse_commit(_connection: Connection) -> None:
    """Refuse the commit of the root transaction, as of `get_transaction()`."""
    raise TransactionMisused(_refusal("The commit of its transaction"))


def _refusal(what: str) -> str:
    return (
        f"{what} would end the transaction in which this job completes. Use self.session.commit(), which ends a "
        "savepoint, or a connection of your own."
    )


class _CommitSent(Direct):
    """Passes the failpoint between a statement that commits and the server's answer to it."""

    def __init__(self, direct: Direct) -> None:
        super().__init__(direct.raw)
        self._direct = direct

    def execute(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> DirectRows:
        reach_with_commit_sent(self.raw, self._direct.text_of(statement, parameters))
        return self._direct.execute(statement, parameters)
