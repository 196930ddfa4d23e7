"""Limits and rates: which jobs have a slot, and which job gets the next. Also the claim of jobs with limits.

A job's limits are rows of `job_limits`, written with the job. The slots of a key are counted in its one row of
`limit_keys`, which every claim and release locks: a count of other rows, in a statement that has waited for a lock,
would be out of date (READ COMMITTED; the PostgreSQL manual, 13.2.1).

Only a job that runs, or is queued and not held, may have a slot. A new job is held from the first, and a job that is
claimed without a slot is held then; neither is in a list of Redis. A free slot goes to the oldest held job, before it
is pushed; so no later job takes it away. A slot of a rate is a start that was granted; the time of the start itself is
kept.

Locks are taken in this order: the job, its rows in `job_limits`, the keys by kind and name. No statement here waits
for a second job.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.limits import MOST_STARTS, AppliedLimit
from jobledger.domain.records import Claim, Runner, Wake
from jobledger.ledger.direct import Executor
from jobledger.ledger.moves.claim import CLAIMABLE, CLAIMED_COLUMNS, OPENED, PAUSE, START, claiming_parameters

_SET_LIMITS: Final = sa.text("""
INSERT INTO job_limits (job_id, kind, key, most, window_seconds)
SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb))
    AS r(job_id uuid, kind text, key text, most int, window_seconds float8)
""")


def set_limits(connection: Connection, applied_limits: Mapping[UUID, Sequence[AppliedLimit]]) -> None:
    """Write down the limits of new jobs, in the transaction that inserts them."""
    rows = [
        {
            "job_id": str(job_id),
            "kind": one.kind,
            "key": one.key,
            "most": one.most,
            "window_seconds": one.window_seconds,
        }
        for job_id, ones in applied_limits.items()
        for one in ones
    ]
    if rows:
        connection.execute(_SET_LIMITS, {"rows": json.dumps(rows)})


# By the locked rows of `mine`: whether a slot of each key is free, and whether this job is the first in its line. In
# the line of `:key` the oldest job was chosen already; other transactions release those before it.
_JUDGED: Final = """
judged AS MATERIALIZED (
    SELECT m.kind, m.key, m.has_slot,
           m.has_slot OR m.taken + recent.starts < m.most AS has_room,
           m.has_slot OR m.kind || ':' || m.key = :key OR NOT EXISTS (
               SELECT FROM job_statuses w
                WHERE w.held_by = m.kind || ':' || m.key
                  AND (w.priority, w.queued_at, w.id) < (job.priority, job.queued_at, job.id)) AS is_first
      FROM mine m CROSS JOIN job
     CROSS JOIN LATERAL (
           SELECT count(*) AS starts FROM unnest(m.starts) AS s(at)
            WHERE s.at > clock_timestamp() - make_interval(secs => m.window_seconds)
           ) AS recent
), verdict AS MATERIALIZED (
    SELECT count(j.kind) AS found,
           min(j.kind || ':' || j.key) FILTER (WHERE NOT (j.has_room AND j.is_first)) AS refused_by,
           bool_and(j.has_room = (j.kind || ':' || j.key = :key)) AS only_others_are_full
      FROM judged j
)"""
_JOB: Final = "id, priority, queued_at, (SELECT count(*) FROM job_limits l WHERE l.job_id = job_statuses.id) AS limits"
_MINE: Final = """
mine AS MATERIALIZED (
    SELECT l.job_id, l.kind, l.key, l.most, l.window_seconds, l.has_slot, k.taken, k.starts
      FROM job JOIN job_limits l ON l.job_id = job.id JOIN limit_keys k ON k.kind = l.kind AND k.key = l.key
     ORDER BY l.kind FOR NO KEY UPDATE OF l, k
)"""

_CLAIM_LIMITED: Final = sa.text(f"""
WITH {PAUSE}, job AS MATERIALIZED (
    SELECT {_JOB} FROM job_statuses
     WHERE {CLAIMABLE} AND NOT EXISTS (SELECT FROM pause) FOR NO KEY UPDATE
), {_MINE}, {_JUDGED}, decision AS MATERIALIZED (
    SELECT v.refused_by, job.limits > v.found AS lacks_keys, job.limits = v.found AND v.refused_by IS NULL AS starts
      FROM job, verdict v WHERE job.limits > 0
), counted AS (
    UPDATE limit_keys k
       SET taken = greatest(k.taken + CASE WHEN NOT d.starts OR m.kind = 'rate' THEN -CAST(m.has_slot AS int)
                                           ELSE CAST(NOT m.has_slot AS int) END, 0),
           window_seconds = greatest(k.window_seconds, m.window_seconds),
           starts = CASE WHEN d.starts AND m.kind = 'rate' THEN array(
               SELECT s.at FROM unnest(k.starts[greatest(cardinality(k.starts) - {MOST_STARTS - 2}, 1):])
                                WITH ORDINALITY AS s(at, place)
                WHERE s.at > clock_timestamp() - make_interval(secs => greatest(k.window_seconds, m.window_seconds))
                ORDER BY s.place) || clock_timestamp() ELSE k.starts END,
           used_at = now()
      FROM mine m, decision d
     WHERE k.kind = m.kind AND k.key = m.key AND NOT d.lacks_keys AND (d.starts OR m.has_slot)
), marked AS (
    UPDATE job_limits l SET has_slot = d.starts AND l.kind = 'limit' FROM mine m, decision d
     WHERE l.job_id = m.job_id AND l.kind = m.kind AND NOT d.lacks_keys AND (d.starts OR m.has_slot)
), refused AS (
    UPDATE job_statuses SET held_by = d.refused_by, pushed_at = NULL, updated_at = now() FROM decision d
     WHERE id = CAST(:id AS uuid) AND status = 'queued' AND NOT d.lacks_keys AND NOT d.starts
), claimed AS (
    UPDATE job_statuses SET {START} FROM decision d
     WHERE {CLAIMABLE} AND d.starts
    RETURNING {CLAIMED_COLUMNS}, started_at
), {OPENED}
SELECT {CLAIMED_COLUMNS}, d.lacks_keys, d.refused_by,
       array(SELECT j.kind || ':' || j.key FROM judged j
              WHERE d.refused_by IS NOT NULL AND (j.has_slot OR j.has_room) ORDER BY j.kind) AS free_keys
  FROM decision d LEFT JOIN claimed ON true
""")  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class LimitedClaim:
    """The result of the claim of a job with limits.

    Attributes:
        claim: None if the job has not started.
        refused_by: the key that holds it from now on.
        lacks_keys: nothing was done: call `make_limit_keys`, and claim again.
        free_keys: of a job that is held: its keys with a free slot, for the jobs before it.
    """

    claim: Claim | None
    refused_by: str | None
    lacks_keys: bool
    free_keys: Sequence[str]


def claim_limited(connection: Executor, job_id: UUID, runner: Runner, lease_seconds: float) -> LimitedClaim | None:
    """queued -> started for a job with limits, if it gets a slot of each; otherwise the job is held.

    Returns:
        None for a job without limits, a duplicate, a canceled, held, paused or expired job.
    """
    parameters = {"id": str(job_id), **claiming_parameters(runner, lease_seconds), "key": ""}
    row = connection.execute(_CLAIM_LIMITED, parameters).one_or_none()
    if row is None:
        return None
    fields = dict(row._mapping)
    lacks_keys, refused_by, free_keys = fields.pop("lacks_keys"), fields.pop("refused_by"), fields.pop("free_keys")
    return LimitedClaim(
        Claim(**fields, is_limited=True) if fields["id"] is not None else None,
        None if lacks_keys else refused_by,
        lacks_keys,
        free_keys,
    )


_MAKE_KEYS: Final = sa.text("""
INSERT INTO limit_keys (kind, key, window_seconds)
SELECT kind, key, window_seconds FROM job_limits WHERE job_id = CAST(:id AS uuid) ORDER BY kind
ON CONFLICT (kind, key) DO NOTHING RETURNING kind
""")


def make_limit_keys(connection: Executor, job_id: UUID) -> None:
    """Insert the keys of a job's limits. Not at the dispatch: claims would wait for its transaction."""
    connection.execute(_MAKE_KEYS, {"id": str(job_id)})


# Releases of the same limit take turns, or the second oldest job could be first. This waits for no job, so it may lock
# the key before a job.
_RELEASE: Final = sa.text(f"""
WITH turn AS MATERIALIZED (
    SELECT kind FROM limit_keys WHERE 'limit:' || :name = :key AND kind = 'limit' AND key = :name FOR NO KEY UPDATE
), job AS MATERIALIZED (
    SELECT {_JOB} FROM job_statuses
     WHERE held_by = :key AND (SELECT count(*) FROM turn) >= 0
     ORDER BY priority, queued_at, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
), pause AS MATERIALIZED (
    SELECT 'pause:' || p.kind || ':' || p.name AS held_by
      FROM job JOIN job_statuses j ON j.id = job.id JOIN pauses p ON (p.kind = 'queue' AND p.name = j.queue)
                                                                  OR (p.kind = 'type' AND p.name = j.job_type)
     ORDER BY p.kind LIMIT 1 FOR SHARE OF p
), {_MINE}, {_JUDGED}, decision AS MATERIALIZED (
    SELECT job.id, coalesce((SELECT held_by FROM pause), v.refused_by) AS refused_by,
           job.limits > v.found AND NOT EXISTS (SELECT FROM pause) AS lacks_keys,
           job.limits <= v.found AND v.refused_by IS NULL AND NOT EXISTS (SELECT FROM pause) AS is_free,
           coalesce(v.only_others_are_full, false) AS is_blocked
      FROM job, verdict v
), counted AS (
    UPDATE limit_keys k SET taken = k.taken + 1, used_at = now() FROM mine m, decision d
     WHERE k.kind = m.kind AND k.key = m.key AND d.is_free AND NOT m.has_slot
), marked AS (
    UPDATE job_limits l SET has_slot = true FROM mine m, decision d
     WHERE l.job_id = m.job_id AND l.kind = m.kind AND d.is_free
), moved AS (
    UPDATE job_statuses j
       SET held_by = d.refused_by, pushed_at = CASE WHEN d.is_free THEN now() END,
           push_count = push_count + CAST(d.is_free AS int), updated_at = now()
      FROM decision d
     WHERE j.id = d.id AND j.status = 'queued' AND NOT d.lacks_keys AND d.refused_by IS DISTINCT FROM :key
    RETURNING j.queue, j.job_type, j.title, j.timeout_seconds, j.push_count
)
SELECT d.id, d.lacks_keys, d.refused_by, d.is_blocked, moved.* FROM decision d LEFT JOIN moved ON true
 WHERE d.lacks_keys OR moved.queue IS NOT NULL
""")  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Released:
    """The result of a release of the oldest job that a key holds.

    Attributes:
        job_id: that job; another may be behind it in the line.
        lacks_keys: nothing was done: call `make_limit_keys`, and release again.
        held_by: another key of the job, or a pause, that holds it now.
        is_blocked: only that other key is full: jobs behind this one may have other keys, see `make_way`.
        wake: the wake-up that the caller pushes after the commit, if the job is not held any more.
    """

    job_id: UUID
    lacks_keys: bool
    held_by: str | None
    is_blocked: bool
    wake: Wake | None


def release_oldest(connection: Executor, key: str) -> Released | None:
    """Give a free slot to the oldest job that a key holds, or let it be held by another key of its own, or a pause.

    Args:
        key: as `held_by` has it.

    Returns:
        None if no slot is free, or no job waits.
    """
    row = connection.execute(_RELEASE, {"key": key, "name": key.partition(":")[2]}).one_or_none()
    if row is None:
        return None
    fields = dict(row._mapping)
    lacks_keys, held_by, is_blocked = (fields.pop(name) for name in ("lacks_keys", "refused_by", "is_blocked"))
    is_free = not lacks_keys and held_by is None
    wake = Wake(**fields) if is_free else None
    return Released(row.id, lacks_keys, None if lacks_keys else held_by, is_blocked, wake)


# This waits for no lock and locks no key. A key may have got a free slot before this commits; the chore for limits then
# sees the jobs that it holds.
_MAKE_WAY: Final = sa.text("""
WITH line AS MATERIALIZED (
    SELECT id, row_number() OVER (ORDER BY priority, queued_at, id) AS place
      FROM (SELECT id, priority, queued_at FROM job_statuses WHERE held_by = :key
             ORDER BY priority, queued_at, id LIMIT :depth) AS oldest
), needed AS MATERIALIZED (
    SELECT line.place, line.id, l.kind, l.key, l.most, l.window_seconds
      FROM line CROSS JOIN LATERAL (SELECT * FROM job_limits WHERE job_id = line.id OFFSET 0) AS l  -- by its index
     WHERE l.kind || ':' || l.key <> :key
), exhausted AS MATERIALIZED (
    SELECT n.kind, n.key, n.most, coalesce(n.window_seconds, 0) AS window_seconds
      FROM (SELECT DISTINCT kind, key, most, window_seconds FROM needed) AS n
      JOIN limit_keys k ON k.kind = n.kind AND k.key = n.key
     WHERE k.taken + (SELECT count(*) FROM unnest(k.starts) AS s(at)
                       WHERE s.at > clock_timestamp() - make_interval(secs => n.window_seconds)) >= n.most
), blocked AS MATERIALIZED (
    SELECT n.id, n.place, n.kind || ':' || n.key AS held_by FROM needed n
      JOIN exhausted e ON e.kind = n.kind AND e.key = n.key AND e.most = n.most
                      AND e.window_seconds = coalesce(n.window_seconds, 0)
), able AS MATERIALIZED (
    SELECT min(place) AS place FROM line WHERE id NOT IN (SELECT id FROM blocked)
), aside AS MATERIALIZED (
    SELECT j.id, b.held_by FROM able JOIN blocked b ON b.place < able.place JOIN job_statuses j ON j.id = b.id
     WHERE j.held_by = :key ORDER BY b.place LIMIT :most FOR NO KEY UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE job_statuses j SET held_by = aside.held_by, updated_at = now()
      FROM aside WHERE j.id = aside.id AND j.status = 'queued'
)
SELECT place IS NOT NULL AS is_made FROM able
""")


def make_way(connection: Executor, key: str, depth: int, most: int) -> bool:
    """Let jobs at the head of a line be held by their other key, which is full, if a job behind them need not wait.

    If all jobs of the line wait for the same key, no job is moved.

    Args:
        key: as `held_by` has it.
        depth: how far to look for a job that need not wait.
        most: jobs that are moved at most.

    Returns:
        Whether there is such a job.
    """
    row = connection.execute(_MAKE_WAY, {"key": key, "depth": depth, "most": most}).one_or_none()
    return row is not None and bool(row.is_made)


_GIVE_BACK: Final = sa.text("""
WITH job AS MATERIALIZED (
    SELECT id FROM job_statuses
     WHERE id IN (SELECT job_id FROM job_limits WHERE job_id = ANY(CAST(:ids AS uuid[])) AND has_slot)
       AND NOT (status = 'started' OR (status = 'queued' AND held_by IS NULL))
     ORDER BY id FOR NO KEY UPDATE
), mine AS MATERIALIZED (
    SELECT l.job_id, l.kind, l.key FROM job JOIN job_limits l ON l.job_id = job.id
      JOIN limit_keys k ON k.kind = l.kind AND k.key = l.key
     WHERE l.has_slot ORDER BY l.kind, l.key FOR NO KEY UPDATE OF l, k
), marked AS (
    UPDATE job_limits l SET has_slot = false FROM mine m WHERE l.job_id = m.job_id AND l.kind = m.kind
), given AS (
    SELECT kind, key, count(*) AS slots FROM mine GROUP BY kind, key
), counted AS (
    UPDATE limit_keys k SET taken = greatest(k.taken - g.slots, 0), used_at = now()
      FROM given g WHERE k.kind = g.kind AND k.key = g.key
)
SELECT kind || ':' || key AS key, true AS is_given FROM given
 UNION ALL
SELECT l.kind || ':' || l.key, false FROM mine m JOIN job_limits l ON l.job_id = m.job_id AND l.kind <> m.kind
 WHERE NOT l.has_slot GROUP BY 1 ORDER BY 2 DESC, 1
""")


@dataclass(frozen=True, slots=True)
class SlotsGivenBack:
    """The result of giving back slots.

    Attributes:
        keys: those that have a free slot now.
        other_keys: other keys of the same jobs; a job that one of them holds may need the free slot.
    """

    keys: Sequence[str]
    other_keys: Sequence[str]


def give_back_slots(connection: Executor, ids: Sequence[UUID]) -> SlotsGivenBack:
    """Take the slots of jobs that may not have one any more: they have ended, are held, or wait for a time or a parent.

    Jobs that run, or are queued and not held, keep theirs, so this may be done at any time.
    """
    rows = list(connection.execute(_GIVE_BACK, {"ids": [str(one) for one in ids]}))
    return SlotsGivenBack([row.key for row in rows if row.is_given], [row.key for row in rows if not row.is_given])


_REPLACE_LIMITS: Final = sa.text("""
WITH old AS (
    DELETE FROM job_limits WHERE job_id = CAST(:id AS uuid)
)
UPDATE job_statuses SET held_by = NULL, pushed_at = NULL
 WHERE id = CAST(:id AS uuid) AND status = 'queued' AND (held_by LIKE 'limit:%' OR held_by LIKE 'rate:%')
""")


def replace_limits(connection: Connection, job_id: UUID, applied_limits: Sequence[AppliedLimit]) -> None:
    """Replace the limits of a job that has not started, and whose row is locked: it joins the line anew.

    A slot that it had counts until the next recount.
    """
    connection.execute(_REPLACE_LIMITS, {"id": str(job_id)})
    set_limits(connection, {job_id: applied_limits})
