"""When each chore of repair was last done, by anybody."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

REAP: Final = "reap"
RECONCILE: Final = "reconcile"
RELAY: Final = "relay"

_AGES: Final = sa.text("SELECT name, CAST(extract(epoch FROM now() - swept_at) AS float8) AS age FROM sweeps")


def ages_seconds(connection: Connection) -> dict[str, float]:
    """How long ago each was done, by its name; one that never was is missing."""
    return {row.name: row.age for row in connection.execute(_AGES)}
