"""Bounded waits for locks: a transaction that another process leaves open stops no other work.

A row is locked by the transaction that changes it, until its end. A session with a dispatch in it that waits for a
job, `after=`, locks that job's row until it commits, which may be any time later. And the other way round: a
transaction of ours that is silent, as that of a frozen process is, keeps its locks for a bounded time.
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
"""How long a transaction is waited for that dispatches the same."""

_LIMIT_WAITS: Final = sa.text("""
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS lock_timeout)
SELECT before.lock_timeout, set_config('lock_timeout', :limit, :is_local) FROM before
""")
_LIMIT_SILENCE: Final = sa.text("SELECT set_config('idle_in_transaction_session_timeout', :limit, true)")
_LIMIT_STATEMENTS: Final = sa.text("SELECT set_config('statement_timeout', :limit, true)")


class LockTimeout(Exception):
    """Another transaction holds what was to be changed, and has not ended in time; nothing was written."""


@contextmanager
def waiting_for_locks(connection: Connection, seconds: float) -> Iterator[None]:
    """Wait for each lock for so long and no longer, and then as before. After an error the transaction is to be undone.

    Raises:
        LockTimeout: a lock was waited for in vain.
    """
    with _vain_wait_as_error():
        before = limit_waits(connection, milliseconds(seconds))
        yield
        limit_waits(connection, before)


@contextmanager
def savepoint_waiting_for_locks(connection: Connection, seconds: float) -> Iterator[None]:
    """The same in the transaction of a caller, which stays usable: an error undoes what was done inside, and no more.

    Raises:
        LockTimeout: a lock was waited for in vain.
    """
    with connection.begin_nested(), waiting_for_locks(connection, seconds):
        yield


@contextmanager
def transaction_waiting_for_locks(
    connections: Connections, deadline_seconds: float, lock_seconds: float
) -> Iterator[Connection]:
    """A transaction as `connections.transaction` makes it, which waits for each lock for so long and no longer.

    Args:
        connections: the servers.
        deadline_seconds: the longest that all of it may take.
        lock_seconds: the longest that one lock is waited for; by far less than the deadline, after which Postgres
            counts as away.

    Raises:
        LockTimeout: a lock was waited for in vain.
        LedgerUnavailable: Postgres is away, or did not answer in time.
    """
    with _vain_wait_as_error(), connections.transaction(deadline_seconds) as connection:
        limit_waits(connection, milliseconds(lock_seconds))
        yield connection


def limit_silence(connection: Connection, seconds: float) -> None:
    """Have Postgres end this transaction if it says nothing for so long: a frozen process keeps its locks no longer."""
    connection.execute(_LIMIT_SILENCE, {"limit": milliseconds(seconds)})


def limit_statements(connection: Connection, seconds: float) -> None:
    """Have Postgres cancel each statement of this transaction that takes longer."""
    connection.execute(_LIMIT_STATEMENTS, {"limit": milliseconds(seconds)})


def milliseconds(seconds: float) -> str:
    """A limit as Postgres's settings have it; the shortest is one millisecond, for 0 is none."""
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
    """How long each of many jobs is waited for: the first few that are held a while, those after them hardly, so that
    what waits behind many that are held is not kept for long.
    """

    LONG_SECONDS: Final = 1.0
    SHORT_SECONDS: Final = 0.05
    MOST_WAITS: Final = 3

    def __init__(self) -> None:
        self._held = 0

    @property
    def lock_seconds(self) -> float:
        """For the next one."""
        return self.LONG_SECONDS if self._held < self.MOST_WAITS else self.SHORT_SECONDS

    def note_held(self) -> None:
        """One was waited for in vain."""
        self._held += 1


@contextmanager
def waiting_for_conflicts(connection: Connection, patience_seconds: float | None = None) -> Iterator[None]:
    """Wait for transactions that dispatch the same; an error inside undoes what was done inside.

    Args:
        connection: in a transaction.
        patience_seconds: how long, for each of them; None for `CONFLICT_SECONDS`.

    Raises:
        DispatchContended: one has not come to an end.
    """
    patience = CONFLICT_SECONDS if patience_seconds is None else patience_seconds
    try:
        with savepoint_waiting_for_locks(connection, patience):
            yield
    except LockTimeout as error:
        raise DispatchContended(
            f"Another transaction dispatches the same, or holds that job, and has not ended within {patience:.2g} s: "
            "nothing was written; try again."
        ) from error
