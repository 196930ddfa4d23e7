"""The name of this ledger, which tells it from other ledgers in the same Redis.

The name is made of the id that a migration wrote and of the place of the database: a copy of the database that was
restored elsewhere has the same id, but is another ledger. A promoted standby is the same ledger.
"""

import os
import threading
import time
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid5
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from jobledger.connections.default import Connections
from jobledger.errors import LedgerUnavailable

LOOK_SECONDS: Final = 0.5
"""The first dispatch of a process waits so long for the name; then it is pushed without one."""

FAILED_SECONDS: Final = 5.0
"""The pause after a failed query for the name."""


@dataclass(frozen=True, slots=True)
class LedgerName:
    """The name of a ledger.

    Attributes:
        id: in Redis.
        words: its database, for people.
    """

    id: str
    words: str

    def __str__(self) -> str:
        return f"{self.id} ({self.words})"


_IDENTITY: Final = sa.text("""
SELECT l.id, d.oid, d.datname, has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS may_ask
  FROM job_ledger l CROSS JOIN pg_database d WHERE d.datname = current_database()
""")
# In its own statement: Postgres checks the permission of a function also where it is not called.
_CLUSTER: Final = sa.text("SELECT system_identifier FROM pg_catalog.pg_control_system()")


def read_name(connection: Connection) -> LedgerName | None:
    """The name of this ledger; None if its row is missing."""
    row = connection.execute(_IDENTITY).one_or_none()
    if row is None:
        return None
    cluster = connection.execute(_CLUSTER).scalar_one() if row.may_ask else ""
    identity: UUID = row.id
    url = connection.engine.url
    return LedgerName(str(uuid5(identity, f"{cluster}/{row.oid}")), f"{row.datname} on {url.host or 'this host'}")


class _Process:
    """The state of a process: the ledger's name for each of its connections, and the times of failed queries."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.names: WeakKeyDictionary[Connections, LedgerName] = WeakKeyDictionary()
        self.not_before: WeakKeyDictionary[Connections, float] = WeakKeyDictionary()

    def renew_lock(self) -> None:
        """In a forked child: another thread of its parent may have had the lock. The names stay."""
        self.lock = threading.Lock()


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.renew_lock)


def ledger_name(connections: Connections) -> LedgerName | None:
    """The name of the ledger, asked for once per process.

    Returns:
        None as long as Postgres does not answer, or is not migrated that far.
    """
    with _process.lock:
        known = _process.names.get(connections)
        if known is not None or time.monotonic() < _process.not_before.get(connections, 0.0):
            return known
        _process.not_before[connections] = time.monotonic() + FAILED_SECONDS  # other threads do not wait for this query
    try:
        with connections.transaction(LOOK_SECONDS) as connection:
            found = read_name(connection)
    except (LedgerUnavailable, SQLAlchemyError):
        return None
    if found is not None:
        with _process.lock:
            _process.names[connections] = found
    return found
