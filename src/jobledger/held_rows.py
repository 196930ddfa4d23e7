"""Transactions that wait only so long for rows that others hold.

A row is held by whoever changes it, and for as long as their transaction is open: a session with a dispatch in it that
waits for a job, `after=`, holds that job's row until it commits. That may be any time; what others have to do goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from jobledger.connections import Connections

_LIMIT_WAITS: Final = sa.text("SELECT set_config('lock_timeout', :limit, true)")
_WAITED_IN_VAIN: Final = ("55P03", "40P01")  # lock timeout; deadlock, with one that holds rows and waits for ours


class RowsHeld(Exception):
    """Another transaction holds a row that was to be changed, and has not ended in time; nothing was written."""


@contextmanager
def waiting_at_most(connections: Connections, deadline_seconds: float, lock_seconds: float) -> Iterator[Connection]:
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
            connection.execute(_LIMIT_WAITS, {"limit": f"{lock_seconds * 1000:.0f}ms"})
            yield connection
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) not in _WAITED_IN_VAIN:
            raise
        raise RowsHeld(str(error.orig).strip().split("\n")[0]) from error


class Patience:
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
