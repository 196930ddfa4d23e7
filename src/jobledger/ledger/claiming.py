"""What every statement that starts a job has in common.

Such a statement has the parts `PAUSE`; then `claimed`, which sets `SET` for a row that is `CLAIMABLE` while there is no
row in `pause`, and gives back `COLUMNS`; then `OPENED`.
"""

from typing import Final

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

SET: Final = "status = 'started', attempt = attempt + 1, started_at = clock_timestamp(), updated_at = now()"

COLUMNS: Final = """
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
