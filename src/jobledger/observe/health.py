"""Health: the state of the service, from one look at Postgres and one at Redis."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.connections.postgres import require_writable
from jobledger.ledger import clock, heartbeats, migrate
from jobledger.ledger.clock import NOTICED_SECONDS, SetBack
from jobledger.ledger.heartbeats import Counted

LOOK_SECONDS: Final = 1.2
"""Longest duration of a look at Postgres."""


class Level(StrEnum):
    """The overall state."""

    OK = "ok"
    DEGRADED = "degraded"
    """Jobs are accepted, but start late (Redis takes no writes, or Postgres's clock was set back) or are not repaired
    (no scheduler process)."""
    UNAVAILABLE = "unavailable"
    """No job can be accepted."""


class Schema(StrEnum):
    """The database's schema, compared with the revision that this version of the code needs."""

    CURRENT = "current"
    NEWER = "newer"
    """Migrated by a newer version of the code, as in the middle of a deployment; this version still works."""
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
        revision: revision of the schema; None if there is none.
        last_sweep_age_seconds: time since the last sweep of a scheduler; None if there was none.
        sweeps: whether the last sweep, the last comparison with Redis and the last successful pass of the relay are
            recent enough.
        counted: result of the last count of all places; None if there was none.
        set_back: the step by which Postgres's clock was set back; None if it has caught up, or was not.
    """

    schema: Schema
    revision: str | None
    last_sweep_age_seconds: float | None
    sweeps: bool
    counted: Counted | None = None
    set_back: SetBack | None = None


def look_at_ledger(connections: Connections, known_revisions: tuple[str, ...]) -> LedgerState:
    """Ask Postgres for its schema and the last sweep.

    Args:
        connections: the servers.
        known_revisions: revisions of the schema, first the one that the code needs.

    Raises:
        LedgerUnavailable: Postgres is away, or takes no writes.
    """
    with connections.transaction(LOOK_SECONDS) as connection:
        require_writable(connection)
        revision = migrate.current_revision(connection)
        schema = _compare(revision, known_revisions)
        ages = heartbeats.ages_seconds(connection) if schema.is_usable else {}
        counted = heartbeats.last_count(connection) if schema.is_usable else None
        set_back = clock.set_back(connection) if schema.is_usable else None
    swept = stale_sweep(connections, ages) is None
    return LedgerState(schema, revision, ages.get(heartbeats.REAP), swept, counted, set_back)


def stale_sweep(connections: Connections, ages_seconds: Mapping[str, float]) -> str | None:
    """The first chore of repair that is overdue, by the times since the last run of each; None if all are recent."""
    settings = connections.settings
    pauses = {heartbeats.RELAY: settings.relay_seconds, heartbeats.REAP: settings.sweep_seconds}
    pauses[heartbeats.RECONCILE] = settings.sweep_seconds
    for name, pause in pauses.items():
        # A time in the future proves nothing: the clock was set back, and later sweeps are not visible.
        if not -NOTICED_SECONDS <= ages_seconds.get(name, inf) <= heartbeats.longest_gap_seconds(pause):
            return name
    return None


def look_at_redis(connections: Connections) -> None:
    """Ask Redis whether it takes writes.

    Raises:
        redis.ResponseError: it answers, and takes none.
        redis.RedisError: it is away.
    """
    queues.try_write(connections.redis)


def judge(ledger: LedgerState | None, redis_works: bool) -> Level:
    """The overall state; `ledger` is None if Postgres did not answer. Drift does not count: most of it passes."""
    if ledger is None or not ledger.schema.is_usable:
        return Level.UNAVAILABLE
    return Level.OK if redis_works and ledger.sweeps and ledger.set_back is None else Level.DEGRADED


def _compare(revision: str | None, known_revisions: tuple[str, ...]) -> Schema:
    if revision is None:
        return Schema.MISSING
    if revision not in known_revisions:
        return Schema.NEWER
    return Schema.CURRENT if revision == known_revisions[0] else Schema.OLDER
