"""The engine of SQLAlchemy with the rules that every transaction relies on; what its errors mean."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg2
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from jobledger.errors import LedgerUnavailable

LONGEST_SILENCE_SECONDS: Final = 60
"""A transaction of ours that says nothing for so long is of a process that is frozen: its locks are taken from it."""
CONNECT_TIMEOUT_SECONDS: Final = 2
"""libpq knows whole seconds, and 2 is the least that every version of it obeys."""


_CONNECTING: Final = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds; keepalives say nothing while sent data is unacknowledged
    "gssencmode": "disable",
}
"""How libpq connects, unless the URL says otherwise."""

SESSION_SETTINGS: Final = {
    "timezone": "UTC",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": f"{LONGEST_SILENCE_SECONDS}s",
    "idle_session_timeout": "0",  # a job may work for long before it uses its session
    "statement_timeout": "0",  # each transaction has a deadline of its own,
    "lock_timeout": "0",  # and limits of its own for locks
}
"""What correctness needs of a session, whatever a role, a database or a URL sets."""


def make_engine(url: str, application_name: str, **options: Any) -> Engine:
    """An engine with the rules that every transaction of ours relies on.

    READ COMMITTED is what the guarded statements are written for: each sees what others committed before it. What the
    URL says of connecting and of the session is kept, but for what `SESSION_SETTINGS` needs otherwise.
    """
    said = sa.make_url(url).query
    connecting = {name: value for name, value in _CONNECTING.items() if name not in said}
    theirs = _options_of(said.get("options"))
    engine = sa.create_engine(
        url,
        isolation_level="READ COMMITTED",
        use_native_hstore=False,  # saves a query on each new connection
        pool_pre_ping=False,  # it would wait for a frozen server, outside of every deadline
        connect_args={
            "application_name": said.get("application_name", application_name),
            "client_encoding": "UTF8",  # a payload may have any letter
            "options": " ".join([*theirs, *_OPTIONS]),
            **connecting,
        },
        **options,
    )
    if not theirs:
        sa.event.listen(engine, "do_connect", _Connect())
    return engine


_OPTIONS: Final = tuple(f"-c {name}=" + value.replace(" ", r"\ ") for name, value in SESSION_SETTINGS.items())
"""After those of others, since the last one wins."""


def _options_of(said: str | tuple[str, ...] | None) -> list[str]:
    """The options with which the server starts a session: those of the URL, or else of the environment."""
    if said is None:
        said = os.environ.get("PGOPTIONS", "")  # libpq reads it for who says no options
    return [one for one in ([said] if isinstance(said, str) else said) if one]


class _Connect:
    """Connects without our options if a pooler refuses them, as PgBouncer does.

    An attempt then sets its session itself (`leases.this_backend`). What else we do relies on no session: a
    transaction says its isolation level and its limits itself, so that a pooler may give each another session.
    """

    def __init__(self) -> None:
        self._is_refused = False

    def __call__(self, dialect: Any, _record: object, arguments: Any, parameters: dict[str, Any]) -> Any:
        if not self._is_refused:
            try:
                return dialect.connect(*arguments, **parameters)
            except psycopg2.OperationalError as error:
                if "unsupported startup parameter" not in str(error):
                    raise
                self._is_refused = True
        return dialect.connect(*arguments, **{name: parameters[name] for name in parameters if name != "options"})


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
        LedgerUnavailable: the connection could not be made, or was lost; or Postgres takes no writes.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise_if_lost(error)
        raise_if_read_only(error)
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

READ_ONLY: Final = "25006"
"""A write in a transaction that takes none."""

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
    try:
        original = getattr(error, "orig", None) or error
        for name in ("pgcode", "sqlstate"):  # psycopg2; asyncpg and psycopg 3
            state = getattr(original, name, None)
            if isinstance(state, str):
                return state
    except Exception:  # an attribute of a job's own exception may raise anything
        return None
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


def raise_if_read_only(error: BaseException) -> None:
    """Name a server that takes no writes as one that is away; for transactions that no job can have made read-only.

    Raises:
        LedgerUnavailable: it is a standby, or `default_transaction_read_only` is on.
    """
    if sql_state(error) == READ_ONLY:
        raise LedgerUnavailable(f"Postgres takes no writes: {first_line(error)}") from error


def require_writable(connection: Connection) -> None:
    """Look whether Postgres takes writes, without one.

    Raises:
        LedgerUnavailable: it takes none.
    """
    if connection.execute(_READ_ONLY).scalar_one() == "on":
        raise LedgerUnavailable("Postgres takes no writes: it is a standby, or default_transaction_read_only is on.")


_READ_ONLY: Final = sa.text("SELECT current_setting('transaction_read_only')")


def first_line(error: BaseException) -> str:
    """What the database says is wrong, without its hints."""
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]
