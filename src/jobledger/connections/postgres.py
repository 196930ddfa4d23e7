"""The engine of SQLAlchemy with the rules that every transaction relies on; what its errors mean."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg2
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from jobledger.errors import LedgerUnavailable

LONGEST_SILENCE_SECONDS: Final = 60
"""A transaction of ours that says nothing for so long is of a process that is frozen: its locks are taken from it."""
CONNECT_TIMEOUT_SECONDS: Final = 2
"""libpq knows whole seconds, and 2 is the least that every version of it obeys."""


def make_engine(url: str, application_name: str, **options: Any) -> Engine:
    """An engine with the rules that every transaction of ours relies on.

    READ COMMITTED is what the guarded statements are written for: each sees what others committed before it.
    """
    return sa.create_engine(
        url,
        isolation_level="READ COMMITTED",
        use_native_hstore=False,  # saves a query on each new connection
        pool_pre_ping=False,  # it would wait for a frozen server, outside of every deadline
        connect_args={
            "application_name": application_name,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,  # milliseconds; keepalives say nothing while sent data is unacknowledged
            "gssencmode": "disable",
            "options": (
                "-c timezone=UTC -c default_transaction_isolation=read\\ committed"
                f" -c idle_in_transaction_session_timeout={LONGEST_SILENCE_SECONDS}s"
            ),
        },
        **options,
    )


def replace_ended(dbapi_connection: Any, *_: object) -> None:
    """Have the pool connect anew if the server has ended a connection while it was idle: then there is something to
    read, the end of the stream. So the first transaction after a restart of Postgres works; it costs no round trip.
    """
    poll = select.poll()
    poll.register(dbapi_connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise sa.exc.DisconnectionError("The server ended this connection while it was idle.")


@contextmanager
def unavailable_as_error() -> Iterator[None]:
    """Name the ways in which Postgres can be away by one error.

    Raises:
        LedgerUnavailable: the connection could not be made, or was lost.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise_if_lost(error)
        raise
    except sa.exc.TimeoutError as error:  # no free connection in the pool
        raise LedgerUnavailable(f"Postgres is busy or away: {first_line(error)}") from error


# What the server says by its SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
QUERY_CANCELED: Final = "57014"
LOCK_NOT_AVAILABLE: Final = "55P03"
DEADLOCK: Final = "40P01"
SERIALIZATION_FAILURE: Final = "40001"
WAITED_IN_VAIN: Final = (LOCK_NOT_AVAILABLE, DEADLOCK)
"""Another transaction holds a lock, and did not end in time; or holds one and waits for ours."""

TRY_AGAIN: Final = (SERIALIZATION_FAILURE, *WAITED_IN_VAIN)
NO_ROOM: Final = ("53100", "58030")
"""Disk full, I/O error: the ledger's server is in trouble, whichever statement met it."""

SCHEMA_MISSING: Final = ("42P01", "42703")
"""No such table, no such column."""

LACKS_RESOURCES: Final = ("53",)
"""The class of what the server lacks itself, such as room on its disk: no other transaction will do better."""

ABOUT_DATA: Final = ("21", "22", "23", "P0")
"""Classes: a row twice in one statement, data exception, integrity constraint, raised by a trigger."""

CONNECTION_LOST: Final = ("08", "57P", "25P03", "25P04")
"""Connection exception; the server shuts down or ended the session; it ended it for its silence or its length."""


def sql_state(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the database, as a driver or SQLAlchemy raised it; None if it has none."""
    original = getattr(error, "orig", None) or error
    for name in ("pgcode", "sqlstate"):  # psycopg2; asyncpg and psycopg 3
        state = getattr(original, name, None)
        if isinstance(state, str):
            return state
    return None


def has_state(error: BaseException, states: tuple[str, ...]) -> bool:
    """Whether an error has one of these SQLSTATEs, or is in one of these classes."""
    return (sql_state(error) or "").startswith(states)


def is_connection_loss(error: BaseException) -> bool:
    """Whether an error of the database says that the connection is gone, rather than that a statement is wrong."""
    if getattr(error, "connection_invalidated", False):
        return True
    if sql_state(error) is None:  # the driver's own
        return isinstance(error, _DRIVERS_OWN)
    return has_state(error, CONNECTION_LOST)


_DRIVERS_OWN: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
)


def raise_if_lost(error: BaseException) -> None:
    """Name a lost connection as the rest of the package does.

    Raises:
        LedgerUnavailable: the error says that the connection is gone.
    """
    if is_connection_loss(error):
        raise LedgerUnavailable(f"Postgres is away: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What the database says is wrong, without its hints."""
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]
