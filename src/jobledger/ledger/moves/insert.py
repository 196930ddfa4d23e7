"""The first move of a job: its row; and the replacement of a job that has not started."""

import json
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.records import Accepted, NewJob
from jobledger.domain.status import JobStatus

_ROWS: Final = """
INSERT INTO job_statuses (
    id, job_type, queue, priority, payload, title, owner, timeout_seconds, max_attempts, has_on_failed, waiting_parents,
    schedule_id, fire_at, idempotency_scope, idempotency_key, unique_key, available_at, expires_at, status, reason,
    held_by, finished_at, queued_at, pushed_at, push_count, created_at, updated_at
)
SELECT n.id, n.job_type, n.queue, n.priority, n.payload, n.title, n.owner, n.timeout_seconds, n.max_attempts,
       n.has_on_failed, n.waiting_parents, n.schedule_id, to_timestamp(n.fire_at_epoch), n.idempotency_scope,
       n.idempotency_key, n.unique_key, due.at,
       greatest(due.at, statement_timestamp()) + make_interval(secs => n.expires_in_seconds),
       s.status, n.canceled_reason, CASE WHEN s.status = 'queued' THEN n.held_by END,
       CASE WHEN s.status = 'canceled' THEN statement_timestamp() END,
       CASE WHEN s.status = 'queued' THEN statement_timestamp() END,
       CASE WHEN s.status = 'queued' AND n.pushed THEN statement_timestamp() END,
       CASE WHEN s.status = 'queued' AND n.pushed THEN 1 ELSE 0 END,
       statement_timestamp(), statement_timestamp()
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS n(
        id uuid, job_type text, queue text, priority int2, payload jsonb, title text, owner text,
        timeout_seconds float8, max_attempts int, has_on_failed bool, waiting_parents int, schedule_id uuid,
        fire_at_epoch float8, idempotency_scope text, idempotency_key text, unique_key text, delay_seconds float8,
        available_at_epoch float8, expires_in_seconds float8, canceled_reason text, held_by text, pushed bool)
CROSS JOIN LATERAL (
    SELECT coalesce(to_timestamp(n.available_at_epoch),
                    statement_timestamp() + make_interval(secs => n.delay_seconds)) AS at
) AS due
CROSS JOIN LATERAL (
    SELECT CASE WHEN n.canceled_reason IS NOT NULL THEN 'canceled' WHEN n.waiting_parents > 0 THEN 'deferred'
                WHEN due.at > statement_timestamp() THEN 'scheduled' ELSE 'queued' END AS status
) AS s
"""
_ACCEPTED: Final = "RETURNING id, status, reason"
_INSERT: Final = sa.text(f"{_ROWS} {_ACCEPTED}")
_INSERT_NEW: Final = sa.text(
    f"{_ROWS} ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL DO NOTHING {_ACCEPTED}"
)


def insert(connection: Connection, jobs: Sequence[NewJob]) -> list[Accepted]:
    """A dispatch: nothing -> queued, scheduled, deferred or (a parent had failed) canceled. One statement for all.

    A queued row is written as pushed if its push follows the commit at once. If the push fails, `unpush` notes it; if
    the process dies first, the reconciler misses the wake-up in Redis. Otherwise the relay pushes it.

    Returns:
        The status of each row; rows whose unique key another unfinished job has are left out.
    """
    statement = _INSERT if all(job.unique_key is None for job in jobs) else _INSERT_NEW
    rows = "[" + ",".join(_as_json(job) for job in jobs) + "]"
    return [
        Accepted(row.id, JobStatus(row.status), row.reason) for row in connection.execute(statement, {"rows": rows})
    ]


_COLUMNS: Final = [name for name in NewJob.__slots__ if name not in ("payload", "applied_limits")]
"""Limits are rows of their own, see `limits`; the payload is JSON already."""


def _as_json(job: NewJob) -> str:
    columns = {name: getattr(job, name) for name in _COLUMNS}
    columns |= {"id": str(job.id), "schedule_id": job.schedule_id and str(job.schedule_id), "held_by": job.held_by}
    return json.dumps(columns)[:-1] + f', "payload": {job.payload}}}'


_REPLACE: Final = sa.text("""
UPDATE job_statuses j
   SET payload = CAST(:payload AS jsonb), title = :title, owner = :owner, timeout_seconds = :timeout_seconds,
       priority = :priority, max_attempts = :max_attempts, available_at = due.at,
       expires_at = greatest(due.at, statement_timestamp())
                    + make_interval(secs => CAST(:expires_in_seconds AS float8)),
       status = CASE WHEN j.status = 'queued' AND due.at > statement_timestamp() THEN 'scheduled' ELSE j.status END,
       held_by = CASE WHEN due.at <= statement_timestamp() THEN j.held_by END,
       pushed_at = NULL, updated_at = statement_timestamp()
  FROM (SELECT coalesce(to_timestamp(CAST(:available_at_epoch AS float8)),
                        statement_timestamp() + make_interval(secs => :delay_seconds)) AS at) AS due
 WHERE j.id = CAST(:id AS uuid) AND j.status IN ('deferred', 'scheduled', 'queued') AND j.attempt = 0
RETURNING j.id, j.status
""")
_CONTENT: Final = (
    "payload", "title", "owner", "timeout_seconds", "priority", "max_attempts", "expires_in_seconds",
    "available_at_epoch", "delay_seconds",
)  # fmt: skip


def replace_waiting(connection: Connection, job_id: UUID, row: NewJob) -> Accepted | None:
    """Put the content of another row into a job that has never been started; its status stays.

    But queued -> scheduled if the new content is not due yet. A wake-up in Redis stays there, and starts nothing; the
    relay pushes another, with the new timeout.

    Returns:
        None if the job was started or has ended.
    """
    content = {name: getattr(row, name) for name in _CONTENT}
    found = connection.execute(_REPLACE, {"id": str(job_id), **content}).one_or_none()
    return Accepted(found.id, JobStatus(found.status), None, is_duplicate=True) if found is not None else None
