"""The moves of a job: one guarded statement for each.

With `insertion`, `dependencies`, `expiry`, `lost_wakes`, `uniqueness`, `bulk` and `slots`, the only writer of statuses.
A guard names the status that it expects and, for a run, the fence (`attempt`). No row back is an answer: somebody
else moved the job first. Time is always the database's; where the transaction may be a job's or a caller's, which began
long ago, it is that of the statement. Nothing here commits; whoever calls owns the transaction. The statements run on
a caller's connection of any driver, so each parameter is cast to its type.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger import claiming, failing, retrying, returning
from jobledger.ledger.direct import Direct, Executor
from jobledger.ledger.rows import Claim, Ended, Evidence, Failed, Runner
from jobledger.status import ON_FAILED_TYPE, Outcome, Reason
from jobledger.wake import Wake

_CLAIM: Final = sa.text(f"""
WITH {claiming.PAUSE}, claimed AS (
    UPDATE job_statuses SET {claiming.SET}
     WHERE {claiming.CLAIMABLE} AND NOT EXISTS (SELECT FROM pause)
       AND NOT EXISTS (SELECT FROM job_limits WHERE job_id = CAST(:id AS uuid))
    RETURNING {claiming.COLUMNS}, started_at
), {claiming.OPENED}
SELECT {claiming.COLUMNS} FROM claimed
""")  # noqa: S608 - put together from constants


def claim(connection: Executor, job_id: UUID, runner: Runner, lease_seconds: float) -> Claim | None:
    """queued -> started: the first statement of every delivery. A job whose queue or type is paused is held instead.

    Returns:
        The claim; or None for a duplicate, a canceled, held or expired job; and for one with limits: see `slots`.
    """
    parameters = {"id": str(job_id), **_fields(runner), "lease_seconds": lease_seconds}
    row = connection.execute(_CLAIM, parameters).one_or_none()
    return Claim(**row._mapping) if row is not None else None


# The end of an attempt: its row is closed in the statement that moves the job, under the same fence.
_CLOSE_ATTEMPT: Final = """
closed AS (
    UPDATE job_attempts a
       SET finished_at = statement_timestamp(), outcome = :outcome,
           error_type = :error_type, error_message = :error_message, traceback = :traceback,
           log_tail = coalesce(:log_tail, a.log_tail), peak_memory_bytes = :peak_memory_bytes,
           progress_done = coalesce(:progress_done, a.progress_done),
           progress_total = coalesce(:progress_total, a.progress_total),
           progress_note = coalesce(:progress_note, a.progress_note)
      FROM moved
     WHERE a.job_id = moved.id AND a.number = moved.attempt
)"""

_COMPLETE: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses
       SET status = 'completed', result = CAST(:result AS jsonb),
           finished_at = statement_timestamp(), updated_at = statement_timestamp()
     WHERE id = CAST(:id AS uuid) AND attempt = :attempt AND status = 'started'
       AND NOT (has_children AND :only_childless)
    RETURNING id, attempt, has_children
), {_CLOSE_ATTEMPT}
SELECT has_children FROM moved
""")  # noqa: S608 - put together from constants


def complete(
    connection: Executor,
    job_id: UUID,
    attempt: int,
    result: str | None,
    evidence: Evidence,
    *,
    only_childless: bool = False,
) -> Ended | None:
    """started -> completed, in the transaction of the job's own effects.

    Args:
        only_childless: leave a job with children alone, because no second statement could follow.

    Returns:
        None if this attempt was fenced out: the caller rolls everything back.
    """
    parameters = {"id": str(job_id), "attempt": attempt, "result": result, "only_childless": only_childless}
    row = connection.execute(_COMPLETE, {**parameters, **_closing(Outcome.COMPLETED, evidence)}).one_or_none()
    return Ended(row.has_children) if row is not None else None


def for_work_horses(raw: Any) -> Direct:
    """A psycopg2 connection for the two statements of a run that are executed for every job.

    On connections that live long they are worth preparing: see `rehearse`.
    """
    return Direct(raw, {_CLAIM: "jobledger_claim", _COMPLETE: "jobledger_complete"})


def rehearse(connection: Direct) -> None:
    """Prepare what a run will do, and do it for a job that cannot be: what it takes is then ready.

    Raises:
        psycopg2.Error: the schema is not there yet.
    """
    connection.prepare()
    nobody = UUID(int=0)
    claim(connection, nobody, Runner("", "", 0, ""), 0.0)
    complete(connection, nobody, 0, None, Evidence())


_RESCHEDULE: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses
       SET status = 'scheduled', available_at = statement_timestamp() + make_interval(secs => :delay_seconds),
           errors = errors + :errors, crashes = crashes + :crashes, losses = losses + :losses,
           pushed_at = NULL, updated_at = statement_timestamp()
     WHERE id = CAST(:id AS uuid) AND attempt = :attempt AND status = 'started' AND cancel_requested_at IS NULL
    RETURNING id, attempt
), {_CLOSE_ATTEMPT}
SELECT id FROM moved
""")  # noqa: S608 - put together from constants


def reschedule(
    connection: Connection,
    job_id: UUID,
    attempt: int,
    outcome: Outcome,
    delay_seconds: float,
    spent: Mapping[str, int],
    evidence: Evidence,
) -> bool:
    """started -> scheduled: this attempt is over, another follows after a wait.

    Args:
        spent: what the attempt took from which budget, by the counter's name (`errors`, `crashes`, `losses`).

    Returns:
        False if this attempt was fenced out, or the job is to be canceled.
    """
    parameters = {"id": str(job_id), "attempt": attempt, "delay_seconds": delay_seconds}
    counted = {"errors": 0, "crashes": 0, "losses": 0, **spent}
    row = connection.execute(_RESCHEDULE, {**parameters, **counted, **_closing(outcome, evidence)}).one_or_none()
    return row is not None


_HAND_BACK: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses
       SET status = 'queued', pushed_at = statement_timestamp(), push_count = push_count + 1,
           updated_at = statement_timestamp()
     WHERE id = CAST(:id AS uuid) AND attempt = :attempt AND status = 'started' AND cancel_requested_at IS NULL
    RETURNING id, attempt, queue, job_type, title, timeout_seconds, push_count
), {_CLOSE_ATTEMPT}
SELECT id, queue, job_type, title, timeout_seconds, push_count, true AS at_front FROM moved
""")  # noqa: S608 - put together from constants


def hand_back(connection: Connection, job_id: UUID, attempt: int, outcome: Outcome, evidence: Evidence) -> Wake | None:
    """started -> queued: this attempt is over through no fault of the job's, and nothing is spent.

    `queued_at` stays what it was, so the job has the place in the order that it had.

    Returns:
        What the caller pushes after the commit; None if this attempt was fenced out, or the job is to be canceled.
    """
    parameters = {"id": str(job_id), "attempt": attempt, **_closing(outcome, evidence)}
    row = connection.execute(_HAND_BACK, parameters).one_or_none()
    return Wake(**row._mapping) if row is not None else None


_FAIL: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses
       SET status = 'failed', reason = :reason,
           finished_at = statement_timestamp(), updated_at = statement_timestamp(),
           errors = errors + :errors, crashes = crashes + :crashes, losses = losses + :losses
     WHERE id = CAST(:id AS uuid) AND attempt = :attempt AND status = 'started' AND cancel_requested_at IS NULL
    RETURNING {failing.COLUMNS}, CAST(:callback_id AS uuid) AS callback_id
), {_CLOSE_ATTEMPT}, {failing.CALLBACK}
{failing.FAILED}
""")  # noqa: S608 - put together from constants


def fail(
    connection: Connection,
    job_id: UUID,
    attempt: int,
    outcome: Outcome,
    reason: Reason,
    spent: Mapping[str, int],
    evidence: Evidence,
    callback_id: UUID,
) -> Failed | None:
    """started -> failed, for good; inserts the `on_failed` job in the same statement.

    Returns:
        None if this attempt was fenced out, or the job is to be canceled.
    """
    parameters = {"errors": 0, "crashes": 0, "losses": 0, **spent}
    row = connection.execute(
        _FAIL,
        {
            "id": str(job_id),
            "attempt": attempt,
            "reason": reason,
            "callback_id": str(callback_id),
            "callback_type": ON_FAILED_TYPE,
            **parameters,
            **_closing(outcome, evidence),
        },
    ).one_or_none()
    return failing.failed(row) if row is not None else None


_CALL_OFF: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses j
       SET status = 'canceled',
           reason = coalesce((SELECT r.reason FROM cancel_requests r
                               WHERE r.job_id = j.id AND j.cancel_requested_at IS NOT NULL), :reason),
           finished_at = statement_timestamp(), updated_at = statement_timestamp()
     WHERE id = CAST(:id AS uuid) AND attempt = :attempt AND status = 'started'
    RETURNING id, attempt, has_children
), {_CLOSE_ATTEMPT}
SELECT has_children FROM moved
""")  # noqa: S608 - put together from constants


def call_off(
    connection: Connection, job_id: UUID, attempt: int, outcome: Outcome, reason: str, evidence: Evidence
) -> Ended | None:
    """started -> canceled: the attempt is over, and the job shall not go on.

    Args:
        reason: why, unless somebody has asked for it: then it is who and why.

    Returns:
        None if this attempt was fenced out.
    """
    parameters = {"id": str(job_id), "attempt": attempt, "reason": reason}
    row = connection.execute(_CALL_OFF, {**parameters, **_closing(outcome, evidence)}).one_or_none()
    return Ended(row.has_children) if row is not None else None


def _fields(row: Evidence | Runner) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _closing(outcome: Outcome, evidence: Evidence) -> dict[str, Any]:
    return {"outcome": outcome, **_fields(evidence)}


_PROMOTE_DUE: Final = sa.text(f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM job_statuses WHERE status = 'scheduled' AND available_at <= now()
     ORDER BY available_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE job_statuses j
   SET status = 'queued', pushed_at = NULL, updated_at = now(),
       queued_at = CASE WHEN {returning.KEEPS_ITS_PLACE} THEN coalesce(queued_at, now()) ELSE now() END
  FROM chosen
 WHERE j.id = chosen.id AND j.status = 'scheduled'
""")  # noqa: S608 - put together from constants


def promote_due(connection: Connection, limit: int) -> int:
    """scheduled -> queued for jobs whose time has come, not pushed yet.

    Those whose last attempt crashed or was lost keep the place in the order that they had, once: see `returning`.

    Returns:
        How many.
    """
    return connection.execute(_PROMOTE_DUE, {"limit": limit}).rowcount


_RETRY: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses SET {retrying.SET} WHERE id = CAST(:id AS uuid) AND status IN ('failed', 'canceled')
    RETURNING {retrying.COLUMNS}
), {retrying.FORGOTTEN}
SELECT * FROM moved
""")  # noqa: S608 - put together from constants


def retry(connection: Connection, job_id: UUID) -> Wake | None:
    """failed or canceled -> queued, because a person says so: the budgets start anew, the fence stays.

    It waits for nothing any more, neither a time nor parents, and does not expire: whoever asks means now.

    Returns:
        What the caller pushes after the commit; None if the job is neither failed nor canceled.
    """
    row = connection.execute(_RETRY, {"id": str(job_id)}).one_or_none()
    return Wake(**row._mapping) if row is not None else None


_CANCEL: Final = sa.text("""
UPDATE job_statuses
   SET status = 'canceled', reason = :reason, held_by = NULL,
       finished_at = statement_timestamp(), updated_at = statement_timestamp()
 WHERE id = CAST(:id AS uuid) AND status IN ('deferred', 'scheduled', 'queued')
RETURNING has_children
""")


def cancel(connection: Connection, job_id: UUID, reason: str) -> Ended | None:
    """deferred, scheduled or queued -> canceled, because a person says so.

    A wake-up that is in Redis stays there; the worker that takes it finds nothing to claim.

    Returns:
        None if the job has started or ended.
    """
    row = connection.execute(_CANCEL, {"id": str(job_id), "reason": reason}).one_or_none()
    return Ended(row.has_children) if row is not None else None
