"""Checks the counts in `limit_keys`, and finds keys with free slots while jobs wait. No status moves here."""

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
    """Jobs with a leaked slot: the process that ended or held them died before it passed the slot on."""
    return list(dict.fromkeys(connection.execute(_LEAKED, {"limit": limit}).scalars()))


_FORGET: Final = sa.text("""
DELETE FROM job_limits
 WHERE job_id IN (SELECT l.job_id FROM job_limits l
                   WHERE (l.has_slot OR NOT :only_slots)
                     AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.id = l.job_id) LIMIT :limit)
""")


def forget(connection: Connection, limit: int, *, only_slots: bool) -> int:
    """Delete the limits of jobs whose rows were deleted by hand, or by older code.

    Args:
        limit: rows at most.
        only_slots: only those with a slot, which no other job can have.

    Returns:
        The number of rows deleted.
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
    """Keys, by kind and name, whose count was wrong at one moment."""
    return [(row.kind, row.key) for row in connection.execute(_MISCOUNTED, {"limit": limit})]


def recount(connection: Connection, kind: str, key: str) -> bool:
    """Count the slots of a key under its lock, for which every claim and release waits.

    Returns:
        Whether the count was wrong.
    """
    parameters = {"kind": kind, "key": key}
    connection.execute(_LOCK, parameters)
    return connection.execute(_RECOUNT, parameters).rowcount > 0


# The oldest held job of a key says how many slots there are. A slot of a rate is free once the start that many before
# the last has left the window; if all slots are granted to jobs that have not started, after a whole window.
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
        wait_seconds: until a slot is free, 0 if one is. None for a limit: the ends of jobs are unknown. For a rate
            the least: another job may start first.
    """

    key: str
    wait_seconds: float | None


def lines(connection: Connection) -> list[Line]:
    """All keys that hold jobs."""
    rows = connection.execute(_LINES)
    return [Line(row.key, float(row.wait_seconds) if row.wait_seconds is not None else None) for row in rows]
