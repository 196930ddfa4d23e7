"""Bounded waits for locks: a transaction that another process leaves open stops no other work.

A row is locked by the transaction that changes it, until its end. A session with a dispatch in it that waits for a
job, `after=`, locks that job's row until it commits, which may be any time later.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from jobledger.connections.default import Connections
from jobledger.errors import DispatchContended

_LIMIT_WAITS_OF_TRANSACTION: Final = sa.text("SELECT set_config('lock_timeout', :limit, true)")
_WAITED_IN_VAIN: Final = ("55P03", "40P01")  # lock timeout; deadlock, with one that holds rows and waits for ours


class LockTimeout(Exception):
    """Another transaction holds a row that was to be changed, and has not ended in time; nothing was written."""


@contextmanager
def transaction_waiting_for_locks(
    connections: Connections, deadline_seconds: float, lock_seconds: float
) -> Iterator[Connection]:
    """A transaction as `connections.transaction` makes it, which waits for each row that is held only so long.

    Args:
        connections: the servers.
        deadline_seconds: the longest that all of it may take.
        lock_seconds: the longest that one row is waited for; by far less than the deadline, after which Postgres
            counts as away.

    Raises:
        RowsHeld: a row was waited for in vain.
        LedgerUnavailable: Postgres is away, or did not answer in time.
    """
    try:
        with connections.transaction(deadline_seconds) as connection:
            connection.execute(_LIMIT_WAITS_OF_TRANSACTION, {"limit": f"{lock_seconds * 1000:.0f}ms"})
            yield connection
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) not in _WAITED_IN_VAIN:
            raise
        raise LockTimeout(str(error.orig).strip().split("\n")[0]) from error


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


CONFLICT_SECONDS: Final = 5
"""How long a transaction is waited for that dispatches the same."""


_LIMIT_WAITS: Final = sa.text("""
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS lock_timeout)
SELECT before.lock_timeout, set_config('lock_timeout', :limit, true) FROM before
""")
_TOOK_TOO_LONG: Final = ("55P03", "40P01")  # lock timeout; deadlock, of two that dispatch the same in another order


@contextmanager
def waiting_for_conflicts(connection: Connection, patience_seconds: float | None = None) -> Iterator[None]:
    """Wait for other transactions for so long and no longer; an error inside undoes what was done inside.

    Args:
        patience_seconds: how long, for each of them; None for `RIVAL_SECONDS`.

    Raises:
        DispatchContended: one has not come to an end.
    """
    patience = CONFLICT_SECONDS if patience_seconds is None else patience_seconds
    limit = f"{max(1, round(patience * 1000))}ms"  # 0 would be for ever
    try:
        with connection.begin_nested():
            before = connection.execute(_LIMIT_WAITS, {"limit": limit}).one().lock_timeout
            yield
            connection.execute(_LIMIT_WAITS, {"limit": before})
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
        if state not in _TOOK_TOO_LONG:
            raise
        raise DispatchContended(
            f"Another transaction dispatches the same, or holds that job, and has not ended within {patience:.2g} s: "
            "nothing was written; try again."
        ) from error
