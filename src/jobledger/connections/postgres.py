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
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        if is_connection_loss(error):
            raise LedgerUnavailable(f"Postgres is away: {first_line(error)}") from error
        raise
    except sa.exc.TimeoutError as error:  # no free connection in the pool
        raise LedgerUnavailable(f"Postgres is busy or away: {first_line(error)}") from error


def is_connection_loss(error: BaseException) -> bool:
    """Whether an error of the database says that the connection is gone, rather than that a statement is wrong."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    state = getattr(error.orig, "pgcode", None) or ""
    # Class 08: connection exception; 57P01..57P05: the server shuts down or ended this session; none: libpq's own.
    return (
        error.connection_invalidated
        or state.startswith(("08", "57P"))
        or (not state and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError))
    )


def first_line(error: BaseException) -> str:
    """What the database says is wrong, without its hints."""
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]


def raise_if_lost(error: psycopg2.Error) -> None:
    """Name a lost connection as the rest of the package does.

    Raises:
        LedgerUnavailable: the error says that the connection is gone.
    """
    state = error.pgcode or ""
    gone = state.startswith(("08", "57P")) or (
        not state and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    )
    if gone:
        raise LedgerUnavailable(f"Postgres is away: {str(error).strip().splitlines()[0]}") from error


QUERY_CANCELED: Final = "57014"
LOCK_NOT_AVAILABLE: Final = "55P03"
NO_ROOM: Final = ("53100", "58030")
"""Disk full, I/O error: the ledger's server is in trouble, whichever statement of the run met it."""

TRY_AGAIN: Final = ("40001", "40P01", LOCK_NOT_AVAILABLE)  # serialization failure, deadlock, lock timeout


def sql_state(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the database, as the driver or SQLAlchemy raised it."""
    state = getattr(getattr(error, "orig", error), "pgcode", None)
    return state if isinstance(state, str) else None
