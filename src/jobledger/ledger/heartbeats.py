"""When each chore of repair was last done, and by which scheduler; what the last count found; all schedulers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

REAP: Final = "reap"
RECONCILE: Final = "reconcile"
RELAY: Final = "relay"
COUNT: Final = "count"

GAP_SECONDS: Final = 15.0
GAP_PAUSES: Final = 3

PRESENCE_SECONDS: Final = 10.0
"""Between two heartbeats of a scheduler."""

SEEN_SECONDS: Final = 3 * PRESENCE_SECONDS
"""A scheduler whose last heartbeat is not older runs."""


def longest_gap_seconds(pause_seconds: float) -> float:
    """After a longer gap between two sweeps of any schedulers, none has swept: none was there, or Postgres was not.

    Args:
        pause_seconds: between two sweeps of one scheduler.
    """
    return max(GAP_SECONDS, GAP_PAUSES * pause_seconds)


_AGES: Final = sa.text("SELECT name, CAST(extract(epoch FROM now() - swept_at) AS float8) AS age FROM sweeps")


def ages_seconds(connection: Connection) -> dict[str, float]:
    """How long ago each was done, by its name; one that never was is missing."""
    return {row.name: row.age for row in connection.execute(_AGES)}


# A start of the future is of a server whose clock was set back since: `resumed_at` says then what must have gone on.
_UP: Final = """
(now() - pg_postmaster_start_time() > make_interval(secs => :settled_seconds)
 OR pg_postmaster_start_time() > now() + make_interval(secs => 5))"""

_RECORD: Final = sa.text(f"""
INSERT INTO sweeps AS s (name, swept_by) VALUES (:name, :by)
ON CONFLICT (name) DO UPDATE
   SET resumed_at = CASE WHEN now() - s.swept_at > make_interval(secs => :gap_seconds) THEN now()
                         ELSE s.resumed_at END,
       swept_at = greatest(s.swept_at, now()), swept_by = :by
RETURNING now() - resumed_at > make_interval(secs => :settled_seconds)
      AND {_UP} AS settled
""")  # noqa: S608 - put together from constants
_SETTLED: Final = sa.text(f"""
SELECT now() - swept_at <= make_interval(secs => :gap_seconds)
   AND now() - resumed_at > make_interval(secs => :settled_seconds)
   AND {_UP} AS settled
  FROM sweeps WHERE name = :name
""")  # noqa: S608 - the same


def record(connection: Connection, name: str, by: str | None, gap_seconds: float, settled_seconds: float) -> bool:
    """Record that a sweep is happening.

    Args:
        name: of the chore.
        by: the process that sweeps again and again; None for one that sweeps once, which is not
            recorded.
        gap_seconds: between two sweeps; after a longer one, sweeping has begun anew.
        settled_seconds: for how long it must have gone on.

    Returns:
        Whether a process has swept without a longer gap, and Postgres has been up, for all of the last
        `settled_seconds`. If not, running jobs may have been unable to renew their leases, and a stale lease proves
        nothing.
    """
    parameters = {"name": name, "gap_seconds": gap_seconds, "settled_seconds": settled_seconds}
    if by is None:
        return bool(connection.execute(_SETTLED, parameters).scalar())
    return bool(connection.execute(_RECORD, {**parameters, "by": by}).scalar_one())


_BEGIN_ANEW: Final = sa.text("UPDATE sweeps SET resumed_at = now() WHERE name = :name")


def begin_anew(connection: Connection, name: str) -> None:
    """Note that a chore could not judge anything at this moment: as if sweeps had begun just now."""
    connection.execute(_BEGIN_ANEW, {"name": name})


_RECORD_AGAIN: Final = sa.text("UPDATE sweeps SET swept_at = greatest(swept_at, now()) WHERE name = :name")


def record_again(connection: Connection, name: str) -> None:
    """Record that a sweep is still going on."""
    connection.execute(_RECORD_AGAIN, {"name": name})


@dataclass(frozen=True, slots=True)
class Counted:
    """What the last count found.

    Attributes:
        age_seconds: since it was made.
        found: how many jobs were in each place, and in none or two; as its maker names them.
    """

    age_seconds: float
    found: Mapping[str, int | bool]


_NOTE_COUNT: Final = sa.text("""
INSERT INTO sweeps (name, swept_by, found) VALUES (:name, :by, CAST(:found AS jsonb))
ON CONFLICT (name) DO UPDATE SET swept_at = now(), swept_by = excluded.swept_by, found = excluded.found
""")
_LAST_COUNT: Final = sa.text("""
SELECT CAST(extract(epoch FROM now() - swept_at) AS float8) AS age_seconds, found FROM sweeps WHERE name = :name
""")


def note_count(connection: Connection, by: str, found: Mapping[str, int | bool]) -> None:
    """Write down what a count has found, in the place of the one before."""
    connection.execute(_NOTE_COUNT, {"name": COUNT, "by": by, "found": json.dumps(found)})


def last_count(connection: Connection) -> Counted | None:
    """The result of the last count; None if there was none."""
    row = connection.execute(_LAST_COUNT, {"name": COUNT}).one_or_none()
    return Counted(row.age_seconds, row.found) if row is not None else None


FORGOTTEN_SECONDS: Final = 86400.0


@dataclass(frozen=True, slots=True)
class SchedulerRow:
    """A scheduler process.

    Attributes:
        name: host:pid.
        seen_seconds_ago: since it last said that it is there.
    """

    name: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_seconds_ago: float


_HEARTBEAT: Final = sa.text("""
WITH forgotten AS (
    DELETE FROM schedulers WHERE name <> :name AND seen_at < now() - make_interval(secs => :forgotten_seconds)
)
INSERT INTO schedulers (name, host, pid, version) VALUES (:name, :host, :pid, :version)
ON CONFLICT (name) DO UPDATE SET seen_at = now(), version = excluded.version
""")
_FORGET_SCHEDULER: Final = sa.text("DELETE FROM schedulers WHERE name = :name")
_ALL_SCHEDULERS: Final = sa.text("""
SELECT name, host, pid, version, started_at, CAST(extract(epoch FROM now() - seen_at) AS float8) AS seen_seconds_ago
  FROM schedulers ORDER BY seen_at DESC
""")


def heartbeat(connection: Connection, name: str, host: str, pid: int, version: str) -> None:
    """Say that this process is there; those that were not seen for a day are forgotten."""
    parameters = {"name": name, "host": host, "pid": pid, "version": version}
    connection.execute(_HEARTBEAT, {**parameters, "forgotten_seconds": FORGOTTEN_SECONDS})


def forget_scheduler(connection: Connection, name: str) -> None:
    """Say that this process ends."""
    connection.execute(_FORGET_SCHEDULER, {"name": name})


def list_schedulers(connection: Connection) -> list[SchedulerRow]:
    """All that were seen within a day, the last seen first."""
    return [SchedulerRow(**row._mapping) for row in connection.execute(_ALL_SCHEDULERS)]
