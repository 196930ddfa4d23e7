"""The clock of the database was set back: how that is seen, remembered, and borne.

It is seen in rows that were written a moment ago and are of the future. What counts elapsed time in such rows is moved
by as much as the clock was: leases, waits between attempts, starts within rates, pushes, sweeps. Fire times of
schedules and moments that a person named are not: they mean the clock, and what it has passed once does not come again.
"""

import json
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

CLOCK: Final = "clock"
"""Its row among the sweeps."""

NOTICED_SECONDS: Final = 5.0
"""Less is borne without a word: things wait for so much longer."""

# Only one process does this at a time. `until` is the latest moment that the clock has shown, as far as is known.
_LOCK: Final = sa.text("""
INSERT INTO sweeps AS s (name, swept_by) VALUES (:name, :by)
ON CONFLICT (name) DO UPDATE SET swept_by = s.swept_by
RETURNING CAST(extract(epoch FROM s.swept_at) AS float8) AS seen, CAST(extract(epoch FROM now()) AS float8) AS now,
          found
""")
_LATEST: Final = sa.text("""
SELECT CAST(extract(epoch FROM greatest(
           (SELECT max(greatest(swept_at, resumed_at)) FROM sweeps), (SELECT max(seen_at) FROM schedulers)
       ) - now()) AS float8)
""")
_SEE: Final = sa.text("""
UPDATE sweeps SET swept_at = now(), resumed_at = now(), swept_by = :by, found = CAST(:found AS jsonb) WHERE name = :name
""")


@dataclass(frozen=True, slots=True)
class SetBack:
    """The clock was set back, and has not come to where it was.

    Attributes:
        by_seconds: by so much, or a few seconds more.
        left_seconds: until it is there again, if it goes on as it should.
    """

    by_seconds: float
    left_seconds: float

    def __str__(self) -> str:
        return (
            f"The clock of Postgres was set back by {self.by_seconds:.0f} s; for {self.left_seconds:.0f} s more it"
            " shows times that it has shown before."
        )


def ahead_seconds(connection: Connection) -> float:
    """By how much the newest sign of life of any scheduler is of the future; 0 if it is not."""
    return max(float(connection.execute(_LATEST).scalar() or 0.0), 0.0)


_REMEMBERED: Final = sa.text("""
SELECT CAST(found ->> 'by_seconds' AS float8) AS by_seconds,
       CAST(found ->> 'until' AS float8) - CAST(extract(epoch FROM now()) AS float8) AS left_seconds
  FROM sweeps WHERE name = :name AND found ? 'until'
""")


def set_back(connection: Connection) -> SetBack | None:
    """Whether the clock shows times that it has shown before: as a scheduler has seen, or as is seen now."""
    ahead = ahead_seconds(connection)
    if ahead > NOTICED_SECONDS:
        return SetBack(ahead, ahead)
    row = connection.execute(_REMEMBERED, {"name": CLOCK}).one_or_none()
    return SetBack(row.by_seconds, row.left_seconds) if row is not None and row.left_seconds > 0 else None


def look(connection: Connection, by: str) -> float:
    """Look at the clock, and note the moment; if it was set back, bear it.

    Args:
        connection: its transaction holds what was found, and all that follows from it.
        by: this process.

    Returns:
        By how many seconds it was set back since the last look; 0 if it was not.
    """
    seen = connection.execute(_LOCK, {"name": CLOCK, "by": by}).one()
    seconds = ahead_seconds(connection)
    if seconds <= NOTICED_SECONDS:
        found = seen.found if seen.found and seen.found["until"] > seen.now else None
        connection.execute(_SEE, {"name": CLOCK, "by": by, "found": json.dumps(found) if found else None})
        return 0.0
    until = max(seen.now + seconds, seen.found["until"] if seen.found else 0.0)
    found = {"by_seconds": seconds, "until": until}
    connection.execute(_SEE, {"name": CLOCK, "by": by, "found": json.dumps(found)})
    for statement in _BEAR:
        connection.execute(statement, {"seconds": seconds})
    return seconds


# Sweeps begin anew: nothing is judged for as long as after any gap. A lease that is longer than the clock was set back
# by cannot be told from one that was renewed since: it runs out by itself.
_BEAR: Final = tuple(
    sa.text(one)
    for one in (
        """
        UPDATE sweeps SET resumed_at = now(), swept_at = least(swept_at, now())
         WHERE resumed_at > now() OR swept_at > now()
        """,
        "UPDATE schedulers SET seen_at = seen_at - make_interval(secs => :seconds) WHERE seen_at > now()",
        """
        UPDATE job_attempts a SET lease_expires_at = a.lease_expires_at - make_interval(secs => :seconds)
          FROM job_statuses j
         WHERE j.status = 'started' AND a.job_id = j.id AND a.number = j.attempt AND a.outcome IS NULL
           AND a.lease_expires_at > now() + make_interval(secs => :seconds)
        """,
        """
        UPDATE job_statuses SET cancel_requested_at = cancel_requested_at - make_interval(secs => :seconds)
         WHERE status = 'started' AND cancel_requested_at > now()
        """,
        """
        UPDATE limit_keys
           SET starts = array(SELECT least(s.at - make_interval(secs => :seconds), now())
                                FROM unnest(starts) WITH ORDINALITY AS s(at, place) ORDER BY s.place),
               used_at = least(used_at - make_interval(secs => :seconds), now())
         WHERE used_at > now() AND cardinality(starts) > 0
        """,
        """
        UPDATE job_propagations SET due_at = due_at - make_interval(secs => :seconds) WHERE due_at > now()
        """,
    )
)

_MOVE_PUSHED: Final = sa.text("""
WITH chosen AS (
    SELECT id FROM job_statuses
     WHERE status = 'queued' AND held_by IS NULL AND queue = :queue AND pushed_at > now()
     ORDER BY pushed_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE job_statuses j SET pushed_at = least(pushed_at - make_interval(secs => :seconds), now())
  FROM chosen WHERE j.id = chosen.id AND j.status = 'queued' AND j.pushed_at IS NOT NULL
""")
# Those that had an attempt wait since its end, which is when the row was written; others may wait for a named moment.
_MOVE_WAITING: Final = sa.text("""
WITH chosen AS (
    SELECT id FROM job_statuses
     WHERE status = 'scheduled' AND attempt > 0 AND available_at > now() AND updated_at > now()
     LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE job_statuses j
   SET available_at = available_at - make_interval(secs => :seconds),
       updated_at = least(updated_at - make_interval(secs => :seconds), now())
  FROM chosen WHERE j.id = chosen.id AND j.status = 'scheduled'
""")


def move_pushed(connection: Connection, queue: str, seconds: float, limit: int) -> int:
    """Have wake-ups of a queue that were pushed in the future be pushed as long ago as they were."""
    return connection.execute(_MOVE_PUSHED, {"queue": queue, "seconds": seconds, "limit": limit}).rowcount


def move_waiting(connection: Connection, seconds: float, limit: int) -> int:
    """Have jobs that wait for another attempt wait no longer than they should."""
    return connection.execute(_MOVE_WAITING, {"seconds": seconds, "limit": limit}).rowcount
