"""started -> completed, scheduled, queued, failed or canceled: the end of an attempt.

The attempt's row is closed in the statement that moves the job, under the same fence. A statement that fails a job
also inserts the job that calls `on_failed`: its part `moved` returns `FAILED_COLUMNS` and a `callback_id`, the id of
that job if the class needs it; then come `CALLBACK` and `FAILED`. Its parameter `callback_type` is `ON_FAILED_TYPE`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.records import Ended, Evidence, Failed, Wake, fields_of
from jobledger.domain.status import ON_FAILED_TYPE, Outcome, Reason
from jobledger.ledger.direct import Executor

FAILED_COLUMNS: Final = "id, attempt, job_type, queue, priority, owner, timeout_seconds, has_children, has_on_failed"

CALLBACK: Final = """
callback AS (
    INSERT INTO job_statuses (id, job_type, title, owner, queue, priority, status, payload, timeout_seconds,
                              max_attempts, queued_at, pushed_at, push_count)
    SELECT callback_id, CAST(:callback_type AS text), job_type || '.on_failed', owner, queue, priority, 'queued',
           jsonb_build_object('job_id', id, 'attempt', attempt), timeout_seconds, 3,
           statement_timestamp(), statement_timestamp(), 1
      FROM moved WHERE has_on_failed
    RETURNING id, queue, job_type, title, timeout_seconds
)"""

FAILED: Final = """
SELECT moved.has_children, callback.id, callback.queue, callback.job_type, callback.title, callback.timeout_seconds
  FROM moved LEFT JOIN callback ON callback.id = moved.callback_id
"""


def failed(row: Any) -> Failed:
    """The result from a row of `FAILED`."""
    callback = Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds) if row.id is not None else None
    return Failed(row.has_children, callback)


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

COMPLETE: Final = sa.text(f"""
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
        only_childless: leave a job with children alone, because no second statement can follow.

    Returns:
        None if this attempt was fenced out: the caller rolls everything back.
    """
    parameters = {"id": str(job_id), "attempt": attempt, "result": result, "only_childless": only_childless}
    row = connection.execute(COMPLETE, {**parameters, **_closing(Outcome.COMPLETED, evidence)}).one_or_none()
    return Ended(row.has_children) if row is not None else None


@dataclass(frozen=True, slots=True)
class Completion:
    """A job whose work is done, to be completed with others.

    Attributes:
        result: JSON, as text.
    """

    job_id: UUID
    attempt: int
    result: str | None
    evidence: Evidence


# As in `claim_many`, the plan must use the primary key. A job with children or limits is left to `complete`: more
# statements follow its end.
_COMPLETE_MANY: Final = sa.text("""
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS g(
           given_id uuid, given_attempt int, given_result jsonb, log_tail text, progress_done bigint,
           progress_total bigint, progress_note text)
), locked AS MATERIALIZED (
    SELECT j.id, g.* FROM given g JOIN job_statuses j ON j.id = g.given_id
     WHERE j.attempt = g.given_attempt AND j.status || '' = 'started' AND NOT j.has_children
       AND NOT EXISTS (SELECT FROM job_limits l WHERE l.job_id = j.id)
     ORDER BY j.id FOR NO KEY UPDATE OF j
), moved AS (
    UPDATE job_statuses j
       SET status = 'completed', result = locked.given_result,
           finished_at = statement_timestamp(), updated_at = statement_timestamp()
      FROM locked
     WHERE j.id = locked.id AND j.attempt = locked.given_attempt AND j.status || '' = 'started'
    RETURNING j.id, j.attempt
), closed AS (
    UPDATE job_attempts a
       SET finished_at = statement_timestamp(), outcome = 'completed',
           log_tail = coalesce(locked.log_tail, a.log_tail),
           progress_done = coalesce(locked.progress_done, a.progress_done),
           progress_total = coalesce(locked.progress_total, a.progress_total),
           progress_note = coalesce(locked.progress_note, a.progress_note)
      FROM moved JOIN locked ON locked.id = moved.id
     WHERE a.job_id = moved.id AND a.number = moved.attempt
)
SELECT id FROM moved
""")


def complete_many(connection: Executor, completions: Sequence[Completion]) -> set[UUID]:
    """started -> completed for jobs that wrote nothing through a session; one statement.

    Args:
        connection: waits for locks only a short time, see `connections.locks`.

    Returns:
        The jobs that were completed. The others, left to `complete`, have children or limits, or were fenced out.
    """
    rows = [
        {
            "given_id": str(one.job_id),
            "given_attempt": one.attempt,
            "given_result": json.loads(one.result) if one.result is not None else None,
            "log_tail": one.evidence.log_tail,
            "progress_done": one.evidence.progress_done,
            "progress_total": one.evidence.progress_total,
            "progress_note": one.evidence.progress_note,
        }
        for one in completions
    ]
    return {row.id for row in connection.execute(_COMPLETE_MANY, {"rows": json.dumps(rows)})}


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
        spent: the amount by which each budget's counter (`errors`, `crashes`, `losses`) grows.

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

    `queued_at` stays, so the job keeps its place in the order.

    Returns:
        The wake-up that the caller pushes after the commit; None if this attempt was fenced out, or the job is to be
        canceled.
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
    RETURNING {FAILED_COLUMNS}, CAST(:callback_id AS uuid) AS callback_id
), {_CLOSE_ATTEMPT}, {CALLBACK}
{FAILED}
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
    return failed(row) if row is not None else None


_CANCEL_RUNNING: Final = sa.text(f"""
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


def cancel_running(
    connection: Connection, job_id: UUID, attempt: int, outcome: Outcome, reason: str, evidence: Evidence
) -> Ended | None:
    """started -> canceled: the attempt is over, and the job shall not go on.

    Args:
        reason: for want of a cancel request, whose reason comes first.

    Returns:
        None if this attempt was fenced out.
    """
    parameters = {"id": str(job_id), "attempt": attempt, "reason": reason}
    row = connection.execute(_CANCEL_RUNNING, {**parameters, **_closing(outcome, evidence)}).one_or_none()
    return Ended(row.has_children) if row is not None else None


def _closing(outcome: Outcome, evidence: Evidence) -> dict[str, Any]:
    return {"outcome": outcome, **fields_of(evidence)}
