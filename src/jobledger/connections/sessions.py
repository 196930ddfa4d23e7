"""Whether a connection has a session of its own, or shares the sessions of a pooler with others."""

from typing import Final

import sqlalchemy as sa

from jobledger.connections.deadlines import within
from jobledger.connections.default import Connections
from jobledger.connections.postgres import unavailable_as_error
from jobledger.errors import ConfigurationError

LOOK_SECONDS: Final = 2.0
LOOKS: Final = 5
"""A pooler that is busy may happen to give one client the same session several times."""

_PID: Final = sa.text("SELECT pg_backend_pid()")


def require_sessions(connections: Connections, who: str) -> None:
    """Look whether a pooler gives each transaction another session.

    Args:
        connections: the servers.
        who: who needs a session, for the error.

    Raises:
        ConfigurationError: it does.
        LedgerUnavailable: Postgres is away.
    """
    if not has_sessions(connections):
        raise ConfigurationError(
            f"JOBLEDGER_DATABASE_URL leads to a pooler in transaction mode, but {who} a session of Postgres: "
            "name Postgres itself, or a pool in session mode."
        )


def has_sessions(connections: Connections) -> bool:
    """Whether what is set in a session stays there. Asks once, if there is no pooler, and does not connect twice.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with (
        unavailable_as_error(),
        connections.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as first,
        within(first, LOOK_SECONDS),
    ):
        pid = first.execute(_PID).scalar_one()
        if pid == first.connection.dbapi_connection.info.backend_pid:  # type: ignore[union-attr]
            return True
        for _ in range(LOOKS):
            with connections.transaction(LOOK_SECONDS) as holder:  # and no other client has its session meanwhile
                if holder.execute(_PID).scalar_one() == pid or first.execute(_PID).scalar_one() != pid:
                    return False
    return True
