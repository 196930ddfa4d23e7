"""Whether what `limit_keys` counts is so, and which keys have free slots while jobs wait. No status moves here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger.pauses import HOLDERS

_LEAKED: Final = sa.text("""
SELECT l.job_id FROM job_limits l JOIN job_statuses j ON j.id = l.job_id
 WHERE l.has_slot
   AND NOT (j.status = 'started' OR (j.status = 'queued' AND j.held_by IS NULL))
 ORDER BY l.kind, l.key LIMIT :limit
""")


def leaked(connection: Connection, limit: int) -> Sequence[UUID]:
    """Jobs that have a slot and may not: whoever ended or held them did not come to pass it on."""
    return list(dict.fromkeys(connection.execute(_LEAKED, {"limit": limit}).scalars()))


_FORGET: Final = sa.text("""
DELETE FROM job_limits
 WHERE job_id IN (SELECT l.job_id FROM job_limits l
                   WHERE (l.has_slot OR NOT :only_slots)
                     AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.id = l.job_id) LIMIT :limit)
""")


def forget(connection: Connection, limit: int, *, only_slots: bool) -> int:
    """Delete what limits jobs that are not there any more; somebody has deleted their rows by hand, or older code did.

    Args:
        limit: jobs at most.
        only_slots: those that have a slot, which nobody else can have.

    Returns:
        How many rows were deleted.
    """
    return connection.execute(_FORGET, {"limit": limit, "only_slots": only_slots}).rowcount


_MISCOUNTED: Final = sa.text("""
SELECT coalesce(k.kind, l.kind) AS kind, coalesce(k.key, l.key) AS key
  FROM (SELECT kind, key, taken FROM limit_keys WHERE taken > 0) AS k
  FULL JOIN (SELECT kind, key, count(*) AS slots FROM job_limits WHERE has_slot GROUP BY kind, key) AS l
         ON l.kind = k.kind AND l.key = k.key
 WHERE k.taken IS DISTINCT FROM l.slots ORDER BY 1, 2 LIMIT :limit
""")
_LOCK: Final = sa.text("""
INSERT INTO limit_keys (kind, key) VALUES (:kind, :key)
ON CONFLICT (kind, key) DO UPDATE SET used_at = now() RETURNING taken
""")
_RECOUNT: Final = sa.text("""
UPDATE limit_keys k SET taken = l.slots
  FROM (SELECT count(*) AS slots FROM job_limits WHERE has_slot AND kind = :kind AND key = :key) AS l
 WHERE k.kind = :kind AND k.key = :key AND k.taken <> l.slots
""")


def miscounted(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """Keys, by kind and name, whose count did not fit at one moment."""
    return [(row.kind, row.key) for row in connection.execute(_MISCOUNTED, {"limit": limit})]


def recount(connection: Connection, kind: str, key: str) -> bool:
    """Count the slots of a key while it is locked: whoever gives or takes one waits.

    Returns:
        Whether the count was wrong.
    """
    parameters = {"kind": kind, "key": key}
    connection.execute(_LOCK, parameters)
    return connection.execute(_RECOUNT, parameters).rowcount > 0


# Of each holder the oldest job says how many slots there are. Of a rate, one more is free once the start that is so
# many before the last one is out of its time; if all have been granted and not made, that is a whole such time away.
_LINES: Final = sa.text(f"""
{HOLDERS}
SELECT h.held_by AS key,
       CASE WHEN l.job_id IS NULL THEN 0
            WHEN coalesce(k.taken, 0) >= l.most THEN l.window_seconds
            ELSE coalesce(greatest(extract(epoch FROM last.at - clock_timestamp()) + l.window_seconds, 0), 0)
        END AS wait_seconds
  FROM holders h
 CROSS JOIN LATERAL (
       SELECT id FROM job_statuses WHERE held_by = h.held_by ORDER BY priority, queued_at, id LIMIT 1
       ) AS oldest
  LEFT JOIN job_limits l ON l.job_id = oldest.id AND h.held_by = l.kind || ':' || l.key
  LEFT JOIN limit_keys k ON k.kind = l.kind AND k.key = l.key
  LEFT JOIN LATERAL (
       SELECT s.at FROM unnest(k.starts) AS s(at)
        ORDER BY s.at DESC OFFSET greatest(l.most - k.taken - 1, 0) LIMIT 1
       ) AS last ON true
 WHERE h.held_by LIKE 'limit:%' OR h.held_by LIKE 'rate:%'
""")  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Line:
    """The jobs that a key holds.

    Attributes:
        key: as `held_by` has it.
        wait_seconds: until a slot is free, 0 if one is. Of a limit None: nobody can tell. Of a rate at least, if nobody
            starts meanwhile who need not wait.
    """

    key: str
    wait_seconds: float | None


def lines(connection: Connection) -> list[Line]:
    """All keys that hold jobs."""
    rows = connection.execute(_LINES)
    return [Line(row.key, float(row.wait_seconds) if row.wait_seconds is not None else None) for row in rows]
