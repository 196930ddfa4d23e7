"""queued -> started: the claim, the first statement of every delivery.

A claim, here and in `limits`, is built of these parts: `PAUSE`; `claimed`, which sets `START` for a row that is
`CLAIMABLE` while `pause` has no row, and returns `CLAIMED_COLUMNS`; `OPENED`.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from jobledger.domain.records import Claim, Runner
from jobledger.ledger.direct import Executor

# A pause is locked by the statement that obeys it: see pauses.
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

# `coalesce` does not execute a subquery that it does not reach: a connection that knows its start does not ask for it.
OPENED: Final = """
opened AS (
    INSERT INTO job_attempts
           (job_id, number, worker, host, pid, version, isolated, token, backend_pid, backend_started_at, started_at,
            lease_expires_at)
    SELECT id, attempt, :worker, :host, :pid, :version, :isolated, CAST(:token AS uuid),
           CASE WHEN :has_session THEN coalesce(CAST(:backend_pid AS int), pg_backend_pid()) END,
           CASE WHEN :has_session THEN coalesce(CAST(:backend_started_at AS timestamptz), (
               SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))) END,
           started_at, started_at + make_interval(secs => :lease_seconds)
      FROM claimed
)"""


def claiming_parameters(runner: Runner, lease_seconds: float) -> dict[str, Any]:
    """The parameters of `OPENED`."""
    return {
        "worker": runner.worker,
        "host": runner.host,
        "pid": runner.pid,
        "version": runner.version,
        "isolated": runner.isolated,
        "token": runner.token and str(runner.token),
        "has_session": runner.has_session,
        "backend_pid": runner.backend and runner.backend.pid,
        "backend_started_at": runner.backend and runner.backend.started_at,
        "lease_seconds": lease_seconds,
    }


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
        The claim; or None for a duplicate, a canceled, held or expired job, and a job with limits: see `limits`.
    """
    row = connection.execute(CLAIM, {"id": str(job_id), **claiming_parameters(runner, lease_seconds)}).one_or_none()
    return Claim(**row._mapping) if row is not None else None


# The status is compared as an expression that no index has, so that the plan uses the primary key: one that walks the
# queued rows of an index is quadratic in their number. Locks are waited for, in the order of ids: skipping a locked row
# would drop the wake-up of a job whose relay has not committed yet.
_CLAIM_MANY: Final = sa.text(f"""
WITH given AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:tokens AS uuid[])) AS g(given_id, given_token)
), locked AS MATERIALIZED (
    SELECT j.id, g.given_token FROM given g JOIN job_statuses j ON j.id = g.given_id
     WHERE j.status || '' = 'queued' AND j.held_by IS NULL
       AND (j.expires_at IS NULL OR j.expires_at > now() OR j.attempt > 0)
       AND NOT EXISTS (SELECT FROM pauses p WHERE (p.kind = 'queue' AND p.name = j.queue)
                                               OR (p.kind = 'type' AND p.name = j.job_type))
       AND NOT EXISTS (SELECT FROM job_limits l WHERE l.job_id = j.id)
       AND NOT EXISTS (SELECT FROM job_attempts a WHERE a.job_id = j.id AND a.number = j.attempt
                                                    AND a.outcome = 'lost' AND NOT a.isolated)
     ORDER BY j.id FOR NO KEY UPDATE OF j
), claimed AS (
    UPDATE job_statuses SET {START} FROM locked
     WHERE job_statuses.id = locked.id AND status || '' = 'queued' AND held_by IS NULL
    RETURNING job_statuses.{CLAIMED_COLUMNS.strip()}, started_at, locked.given_token
), opened AS (
    INSERT INTO job_attempts
           (job_id, number, worker, host, pid, version, isolated, token, started_at, lease_expires_at)
    SELECT id, attempt, :worker, :host, :pid, :version, false, given_token, started_at,
           started_at + make_interval(secs => :lease_seconds)
      FROM claimed
)
SELECT {CLAIMED_COLUMNS} FROM claimed ORDER BY id
""")  # noqa: S608 - put together from constants


def claim_many(
    connection: Executor, deliveries: Mapping[UUID, UUID], runner: Runner, lease_seconds: float
) -> list[Claim]:
    """queued -> started for jobs that a shared process takes at once; one statement.

    A job that is held, paused, limited, expired or in another status is left to `claim`, and so is a job whose last
    attempt was lost with a shared process: it runs isolated. All are left to it if a lock is not had in time.

    Args:
        connection: waits for locks only a short time, see `connections.locks`.
        deliveries: the token of each delivery, by the id of its job.
        runner: the shared process; its token and backend are not used.

    Returns:
        The claims, in the order of their ids.
    """
    ids = sorted(deliveries)
    parameters = claiming_parameters(runner, lease_seconds)
    rows = connection.execute(
        _CLAIM_MANY, {**parameters, "ids": [str(one) for one in ids], "tokens": [str(deliveries[one]) for one in ids]}
    )
    return [Claim(**row._mapping) for row in rows]


_CLAIM_AGAIN: Final = sa.text("""
UPDATE job_attempts a
   SET started_at = now(), lease_expires_at = now() + make_interval(secs => :lease_seconds),
       backend_pid = CASE WHEN :has_session THEN coalesce(CAST(:backend_pid AS int), pg_backend_pid()) END,
       backend_started_at = CASE WHEN :has_session THEN coalesce(CAST(:backend_started_at AS timestamptz), (
           SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid()))) END
  FROM job_statuses j
 WHERE j.id = CAST(:id AS uuid) AND j.status = 'started' AND a.job_id = j.id AND a.number = j.attempt
   AND a.outcome IS NULL AND a.token = CAST(:token AS uuid)
RETURNING j.id, j.attempt, j.job_type, j.queue, j.payload, j.timeout_seconds, j.max_attempts, j.errors, j.crashes,
          j.losses, j.created_at, j.fire_at,
          EXISTS (SELECT FROM job_limits l WHERE l.job_id = j.id) AS is_limited
""")


def claim_again(connection: Executor, job_id: UUID, runner: Runner, lease_seconds: float) -> Claim | None:
    """Take up this delivery's own claim, whose answer was lost with its connection.

    The token of the delivery identifies it: another delivery of the same job, also in this process, has another token.
    The attempt goes on over this connection, whose session the reaper ends if it must.

    Returns:
        The claim; or None if the row is not started, or another delivery has claimed it.
    """
    row = connection.execute(
        _CLAIM_AGAIN, {"id": str(job_id), **claiming_parameters(runner, lease_seconds)}
    ).one_or_none()
    return Claim(**row._mapping) if row is not None else None
