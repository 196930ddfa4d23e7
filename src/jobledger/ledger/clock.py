"""A database clock that was set back: noticing it, remembering it, and correcting rows.

Rows that were written a moment ago and lie in the future show it. Times in such rows that measure elapsed time move by
the same amount: leases, waits between attempts, starts within rates, pushes, sweeps. Fire times of schedules and
times that a person named stay: they mean the clock, and a time that it has passed does not come again.
"""

import json
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

CLOCK: Final = "clock"
"""The name of its row in `sweeps`."""

NOTICED_SECONDS: Final = 5.0
"""A smaller step is ignored: waits last longer by as much."""

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
    """The clock was set back, and has not caught up.

    Attributes:
        by_seconds: the size of the step, or a few seconds less.
        left_seconds: until it has caught up, at its normal pace.
    """

    by_seconds: float
    left_seconds: float

    def __str__(self) -> str:
        return (
            f"The clock of Postgres was set back by {self.by_seconds:.0f} s; for {self.left_seconds:.0f} s more it"
            " shows times that it has shown before."
        )


def ahead_seconds(connection: Connection) -> float:
    """By how much the newest sign of life of any scheduler lies in the future; 0 if it does not."""
    return max(float(connection.execute(_LATEST).scalar() or 0.0), 0.0)


_REMEMBERED: Final = sa.text("""
SELECT CAST(found ->> 'by_seconds' AS float8) AS by_seconds,
       CAST(found ->> 'until' AS float8) - CAST(extract(epoch FROM now()) AS float8) AS left_seconds
  FROM sweeps WHERE name = :name AND found ? 'until'
""")


def set_back(connection: Connection) -> SetBack | None:
    """The step of a clock that has not caught up, as a scheduler noted it or as it shows now; None if there is none."""
    ahead = ahead_seconds(connection)
    if ahead > NOTICED_SECONDS:
        return SetBack(ahead, ahead)
    row = connection.execute(_REMEMBERED, {"name": CLOCK}).one_or_none()
    return SetBack(row.by_seconds, row.left_seconds) if row is not None and row.left_seconds > 0 else None


def look(connection: Connection, by: str) -> float:
    """Check the clock, and note its time; if it was set back, correct rows.

    Args:
        connection: in a transaction, which the note and the corrections join.
        by: this process.

    Returns:
        The seconds by which it was set back since the last check; 0 if it was not.
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


# Sweeps begin anew: as after any gap, nothing is judged for a while. A lease that is longer than the step cannot be
# told from one that was renewed since: it runs out by itself.
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
