"""Which Redis the ledger knows: the last one of which all that it had lost was noted."""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class KnownEpoch:
    """The last one.

    Attributes:
        age_seconds: since it was noted.
    """

    epoch: str
    age_seconds: float


_KNOWN: Final = sa.text(
    "SELECT epoch, CAST(extract(epoch FROM now() - since) AS float8) AS age_seconds FROM redis_epoch"
)


def known(connection: Connection) -> KnownEpoch | None:
    """The Redis that the ledger knows; None if nobody has looked yet."""
    row = connection.execute(_KNOWN).one_or_none()
    return KnownEpoch(**row._mapping) if row is not None else None


_NOTE: Final = sa.text("""
INSERT INTO redis_epoch AS e (epoch) VALUES (:new)
ON CONFLICT (only_row) DO UPDATE SET epoch = :new, since = now() WHERE e.epoch = :old
""")


def note(connection: Connection, old: str | None, new: str) -> bool:
    """Note another Redis, if the known one is still the one that was seen.

    Returns:
        False if somebody else has noted one meanwhile.
    """
    return connection.execute(_NOTE, {"old": old, "new": new}).rowcount == 1
