"""The one Postgres connection of a run: its claim, its job's session and its finishing statement go over it.

It is the worker's spare connection, if there is one, or a pooled one.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg2
import sqlalchemy as sa
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE
from sqlalchemy.engine import Connection

from jobledger.connections.deadlines import shut
from jobledger.connections.default import Connections
from jobledger.connections.postgres import raise_if_lost
from jobledger.failpoints import Failpoint, is_planned, reach_with_commit_sent
from jobledger.ledger.direct import Direct, DirectRows
from jobledger.worker.spare import SpareConnection, for_work_horses


class RunConnection:
    """Open for the length of one run.

    Args:
        connections: the process's servers.
        spare: the worker's spare connection, if the worker keeps one.

    Raises:
        LedgerUnavailable: Postgres is away.
    """

    def __init__(self, connections: Connections, spare: SpareConnection | None) -> None:
        self._connections = connections
        self._spare = spare
        self._pooled: Any = None
        self._session_connection: Connection | None = None
        self.raw: Any = spare.take() if spare is not None else None
        if self.raw is None:
            self._spare = None
            self._pooled = connections.raw_connection()
            self.raw = self._pooled.dbapi_connection
        self.direct = Direct(self.raw) if self._spare is None else for_work_horses(self.raw)

    @property
    def committing(self) -> Direct:
        """As `direct`, for a statement that is a transaction of its own and completes the job."""
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
        """Commit, whoever wrote: the job's session, the finishing statement, or both.

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
        """Undo what was not committed.

        Raises:
            LedgerUnavailable: the connection went away, and the transaction with it.
        """
        try:
            self.raw.rollback()
        except psycopg2.Error as error:
            raise_if_lost(error)
            raise

    def for_session(self) -> Connection:
        """The same connection as SQLAlchemy has it, in one transaction with the finishing statement."""
        if self._session_connection is None:
            self.begin()
            self._session_connection = self._connections.wrap(self.raw)
            self._session_connection.begin()
        return self._session_connection

    def shut(self) -> None:
        """From another thread: end the wait for a server that does not answer. Whoever waits sees a lost connection."""
        with suppress(psycopg2.Error):  # it is closed already
            shut(self.raw.fileno())

    def cut(self) -> None:
        """Close it for good: its session ends, with all that was not committed."""
        self.raw.close()
        if self._pooled is not None:
            self._pooled.invalidate()

    def release(self) -> None:
        """After an orderly run: back to the worker, if it is as it was taken, or to the pool."""
        if self.is_gone:
            return
        if self._session_connection is not None:
            self.cut()  # the job may have left settings or temporary tables in it
        elif self._pooled is not None:
            self.raw.autocommit = False  # as the pool knows it
            self._pooled.close()
        elif self._spare is not None:
            self._spare.give_back()


class _CommitSent(Direct):
    """Passes the failpoint between a statement that commits and the server's answer to it."""

    def __init__(self, direct: Direct) -> None:
        super().__init__(direct.raw)
        self._direct = direct

    def execute(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> DirectRows:
        reach_with_commit_sent(self.raw, self._direct.text_of(statement, parameters))
        return self._direct.execute(statement, parameters)
