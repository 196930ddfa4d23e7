"""queued -> started: the claim, the first statement of every delivery.

What claims have in common, see `limits` too: the parts `PAUSE`; then `claimed`, which sets `START` for a row that
is `CLAIMABLE` while there is no row in `pause`, and gives back `CLAIMED_COLUMNS`; then `OPENED`.
"""

from dataclasses import asdict
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from jobledger.domain.records import Claim, Runner, fields_of
from jobledger.ledger.direct import Executor

# A pause is locked by whoever obeys it: see pauses.
PAUSE: Final = """
pause AS MATERIALIZED (
    SELECT 'pause:' || p.kind || ':' || p.name AS held_by
      FROM job_statuses j JOIN pauses p ON (p.kind = 'queue' AND p.name = j.queue)
                                        OR (p.kind = 'type' AND p.name = j.job_type)
     WHERE j.id = CAST(:id AS uuid) ORDER BY p.kind LIMIT 1 FOR SHARE OF p
), held AS (
    UPDATE job_statuses SET held_by = pause.held_by, pushed_at = NULL, updated_at = now() FROM pause
     WHERE id = CAST(:id AS uuid) AND status = 'queued' AND job_statuses.held_by IS NULL
)"""

CLAIMABLE: Final = """
           id = CAST(:id AS uuid) AND status = 'queued' AND held_by IS NULL
       AND (expires_at IS NULL OR expires_at > now() OR attempt > 0)"""

START: Final = "status = 'started', attempt = attempt + 1, started_at = clock_timestamp(), updated_at = now()"

CLAIMED_COLUMNS: Final = """
              id, attempt, job_type, queue, payload, timeout_seconds, max_attempts, errors, crashes, losses,
              created_at, fire_at"""

OPENED: Final = """
opened AS (
    INSERT INTO job_attempts
           (job_id, number, worker, host, pid, version, backend_pid, started_at, lease_expires_at)
    SELECT id, attempt, :worker, :host, :pid, :version, pg_backend_pid(), started_at,
           started_at + make_interval(secs => :lease_seconds)
      FROM claimed
)"""


_CLAIM_AGAIN: Final = sa.text("""
UPDATE job_attempts a
   SET backend_pid = pg_backend_pid(), started_at = now(),
       lease_expires_at = now() + make_interval(secs => :lease_seconds)
  FROM job_statuses j
 WHERE j.id = CAST(:id AS uuid) AND j.status = 'started' AND a.job_id = j.id AND a.number = j.attempt
   AND a.outcome IS NULL AND a.worker = :worker AND a.host = :host AND a.pid = :pid AND a.version = :version
RETURNING j.id, j.attempt, j.job_type, j.queue, j.payload, j.timeout_seconds, j.max_attempts, j.errors, j.crashes,
          j.losses, j.created_at, j.fire_at,
          EXISTS (SELECT FROM job_limits l WHERE l.job_id = j.id) AS is_limited
""")


def claim_again(connection: Executor, job_id: UUID, runner: Runner, lease_seconds: float) -> Claim | None:
    """Take up this delivery's own claim, whose answer was lost with the connection that it went over.

    Nobody else can have made it: a process runs one delivery of a job at a time. The attempt goes on over this
    connection, so that the reaper, if it must, ends this one's session.

    Returns:
        The claim; or None if the row is not started, or by somebody else.
    """
    row = connection.execute(
        _CLAIM_AGAIN, {"id": str(job_id), **asdict(runner), "lease_seconds": lease_seconds}
    ).one_or_none()
    return Claim(**row._mapping) if row is not None else None


CLAIM: Final = sa.text(f"""
WITH {PAUSE}, claimed AS (
    UPDATE job_statuses SET {START}
     WHERE {CLAIMABLE} AND NOT EXISTS (SELECT FROM pause)
       AND NOT EXISTS (SELECT FROM job_limits WHERE job_id = CAST(:id AS uuid))
    RETURNING {CLAIMED_COLUMNS}, started_at
), {OPENED}
SELECT {CLAIMED_COLUMNS} FROM claimed
""")  # noqa: S608 - put together from constants


def claim(connection: Executor, job_id: UUID, runner: Runner, lease_seconds: float) -> Claim | None:
    """queued -> started: the first statement of every delivery. A job whose queue or type is paused is held instead.

    Returns:
        The claim; or None for a duplicate, a canceled, held or expired job; and for one with limits: see `limits`.
    """
    parameters = {"id": str(job_id), **fields_of(runner), "lease_seconds": lease_seconds}
    row = connection.execute(CLAIM, parameters).one_or_none()
    return Claim(**row._mapping) if row is not None else None
