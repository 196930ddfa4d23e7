"""Checks whether a connection has its own session, or shares the sessions of a pooler with others."""

from typing import Final

import sqlalchemy as sa

from jobledger.connections.deadlines import within
from jobledger.connections.default import Connections
from jobledger.connections.postgres import unavailable_as_error
from jobledger.errors import ConfigurationError

LOOK_SECONDS: Final = 2.0
LOOKS: Final = 5
"""A busy pooler may by chance give a client the same session several times."""

_PID: Final = sa.text("SELECT pg_backend_pid()")


def require_sessions(connections: Connections, who: str) -> None:
    """Refuse a pooler that gives each transaction another session.

    Args:
        connections: the servers.
        who: for the error, the subject and verb, such as "workers need".

    Raises:
        ConfigurationError: there is such a pooler.
        LedgerUnavailable: Postgres is away.
    """
    if not has_sessions(connections):
        raise ConfigurationError(
            f"JOBLEDGER_DATABASE_URL leads to a pooler in transaction mode, but {who} a session of Postgres: "
            "name Postgres itself, or a pool in session mode."
        )


def has_sessions(connections: Connections) -> bool:
    """Whether settings of a session persist. Without a pooler this takes one connection and one query.

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
            with connections.transaction(LOOK_SECONDS) as holder:  # keeps other clients from its session meanwhile
                if holder.execute(_PID).scalar_one() == pid or first.execute(_PID).scalar_one() != pid:
                    return False
    return True
