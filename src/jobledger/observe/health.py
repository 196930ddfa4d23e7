"""What somebody who asks "does it work?" should hear, and the two looks at the servers that it takes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from jobledger.connections import Connections
from jobledger.ledger import migrate, sweeps

LOOK_SECONDS: Final = 1.2
"""Longest look at Postgres."""

STALE_SWEEPS: Final = 3
STALE_SECONDS: Final = 15.0
"""Nobody repairs if the last sweep is older than this, and than three times the pause between sweeps."""


class Level(StrEnum):
    """The one word of it."""

    OK = "ok"
    DEGRADED = "degraded"
    """Jobs are accepted, but they start late (no Redis) or nobody repairs (no scheduler process)."""
    UNAVAILABLE = "unavailable"
    """No job can be accepted."""


class Schema(StrEnum):
    """How the database's schema compares with what this version of the code needs."""

    CURRENT = "current"
    NEWER = "newer"
    """Migrated by a newer version of the code, as in the middle of a deployment: this one still works."""
    OLDER = "older"
    MISSING = "missing"

    @property
    def is_usable(self) -> bool:
        """Whether jobs can be written and read."""
        return self in (Schema.CURRENT, Schema.NEWER)


@dataclass(frozen=True, slots=True)
class LedgerState:
    """One look at Postgres.

    Attributes:
        revision: of the schema; None if there is none.
        last_sweep_age_seconds: how long ago a scheduler process looked for lost jobs; None if none ever has.
        sweeps: whether that is recent enough.
    """

    schema: Schema
    revision: str | None
    last_sweep_age_seconds: float | None
    sweeps: bool


def look_at_ledger(connections: Connections, known_revisions: tuple[str, ...]) -> LedgerState:
    """Ask Postgres for its schema and the last sweep.

    Args:
        connections: the servers.
        known_revisions: of the schema, the one that the code needs first.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(LOOK_SECONDS) as connection:
        revision = migrate.current_revision(connection)
        schema = _compare(revision, known_revisions)
        age = sweeps.ages_seconds(connection).get(sweeps.REAP) if schema.is_usable else None
    longest = max(STALE_SECONDS, STALE_SWEEPS * connections.settings.sweep_seconds)
    return LedgerState(schema, revision, age, sweeps=age is not None and age <= longest)


def look_at_redis(connections: Connections) -> None:
    """Ask Redis whether it is there.

    Raises:
        redis.RedisError: it is not.
    """
    connections.redis.ping()


def judge(ledger: LedgerState | None, redis_answers: bool) -> Level:
    """Sum it up; None for a ledger that did not answer."""
    if ledger is None or not ledger.schema.is_usable:
        return Level.UNAVAILABLE
    return Level.OK if redis_answers and ledger.sweeps else Level.DEGRADED


def _compare(revision: str | None, known_revisions: tuple[str, ...]) -> Schema:
    if revision is None:
        return Schema.MISSING
    if revision not in known_revisions:
        return Schema.NEWER
    return Schema.CURRENT if revision == known_revisions[0] else Schema.OLDER
