"""Bounded waits for locks: a transaction that another process leaves open stops no other work.

A transaction locks the rows that it changes until its end. A session that dispatches with `after=` locks the parent's
row until it commits, which may be any time later. Conversely, a silent transaction of ours, such as that of a frozen
process, keeps its locks for a bounded time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from jobledger.connections.default import Connections
from jobledger.connections.postgres import WAITED_IN_VAIN, first_line, sql_state
from jobledger.errors import DispatchContended

CONFLICT_SECONDS: Final = 5
"""The wait for a transaction that dispatches an equal job."""

_LIMIT_WAITS: Final = sa.text("""
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS lock_timeout)
SELECT before.lock_timeout, set_config('lock_timeout', :limit, :is_local) FROM before
""")
_LIMIT_SILENCE: Final = sa.text("SELECT set_config('idle_in_transaction_session_timeout', :limit, true)")
_LIMIT_STATEMENTS: Final = sa.text("SELECT set_config('statement_timeout', :limit, true)")


class LockTimeout(Exception):
    """Another transaction had a row or a table locked for too long; nothing was written."""


@contextmanager
def waiting_for_locks(connection: Connection, seconds: float) -> Iterator[None]:
    """Limit the wait for each lock inside the context. After an error the transaction must be rolled back.

    Raises:
        LockTimeout: a lock was waited for in vain.
    """
    with _vain_wait_as_error():
        before = limit_waits(connection, milliseconds(seconds))
        yield
        limit_waits(connection, before)


@contextmanager
def savepoint_waiting_for_locks(connection: Connection, seconds: float) -> Iterator[None]:
    """Limit the wait for each lock in a savepoint of the caller's transaction, which stays usable after an error.

    Raises:
        LockTimeout: a lock was waited for in vain.
    """
    with connection.begin_nested(), waiting_for_locks(connection, seconds):
        yield


@contextmanager
def transaction_waiting_for_locks(
    connections: Connections, deadline_seconds: float, lock_seconds: float
) -> Iterator[Connection]:
    """A transaction of `connections.transaction` with a limit on the wait for each lock.

    Args:
        connections: the servers.
        deadline_seconds: the longest that the transaction may take; then Postgres counts as away.
        lock_seconds: the longest wait for one lock; far less than the deadline.

    Raises:
        LockTimeout: a lock was waited for in vain.
        LedgerUnavailable: Postgres is away, or did not answer in time.
    """
    with _vain_wait_as_error(), connections.transaction(deadline_seconds) as connection:
        limit_waits(connection, milliseconds(lock_seconds))
        yield connection


def limit_silence(connection: Connection, seconds: float) -> None:
    """Have Postgres end this transaction after so long a silence, so that a frozen process does not keep its locks."""
    connection.execute(_LIMIT_SILENCE, {"limit": milliseconds(seconds)})


def limit_statements(connection: Connection, seconds: float) -> None:
    """Have Postgres cancel each statement of this transaction that takes longer."""
    connection.execute(_LIMIT_STATEMENTS, {"limit": milliseconds(seconds)})


def milliseconds(seconds: float) -> str:
    """A limit in the form of Postgres's settings; at least one millisecond, because 0 means no limit."""
    return f"{max(1, round(seconds * 1000))}ms"


def limit_waits(connection: Connection, limit: str, *, whole_session: bool = False) -> str:
    """Limit the wait for each lock, until the end of the transaction or of the session.

    Args:
        connection: in a transaction, unless it is for the session.
        limit: see `milliseconds`.
        whole_session: whether it outlives the transaction.

    Returns:
        The limit before.
    """
    parameters = {"limit": limit, "is_local": not whole_session}
    return str(connection.execute(_LIMIT_WAITS, parameters).one().lock_timeout)


@contextmanager
def _vain_wait_as_error() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if sql_state(error) not in WAITED_IN_VAIN:
            raise
        raise LockTimeout(first_line(error)) from error


class LockPatience:
    """The wait for the lock of each of many jobs: long for the first few that are locked, short for later ones, so that
    many locked jobs do not delay the others for long.
    """

    LONG_SECONDS: Final = 1.0
    SHORT_SECONDS: Final = 0.05
    MOST_WAITS: Final = 3

    def __init__(self) -> None:
        self._locked = 0

    @property
    def lock_seconds(self) -> float:
        """For the next job."""
        return self.LONG_SECONDS if self._locked < self.MOST_WAITS else self.SHORT_SECONDS

    def note_held(self) -> None:
        """A job stayed locked for longer than the wait."""
        self._locked += 1


@contextmanager
def waiting_for_conflicts(connection: Connection, patience_seconds: float | None = None) -> Iterator[None]:
    """Wait for transactions that dispatch an equal job; an error rolls back to the start of the context.

    Args:
        connection: in a transaction.
        patience_seconds: the wait for each of them; None for `CONFLICT_SECONDS`.

    Raises:
        DispatchContended: such a transaction has not ended in time.
    """
    patience = CONFLICT_SECONDS if patience_seconds is None else patience_seconds
    try:
        with savepoint_waiting_for_locks(connection, patience):
            yield
    except LockTimeout as error:
        raise DispatchContended(
            f"Another transaction dispatches an equal job or has it locked, and has not ended within {patience:.2g} s: "
            "nothing was written; try again."
        ) from error
