"""The first move of a job: its row. With `transitions`, one of the writers of statuses; nothing here commits."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger.rows import NewJob
from jobledger.status import JobStatus
from jobledger.wake import Accepted

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

    A queued row is written as pushed if its push will follow the commit at once; if that fails, `unpush` says so, and
    if the process dies in between, the reconciler misses it in Redis. Otherwise the relay pushes it.

    Returns:
        What became of each; nothing of those with a unique key that another unfinished job has.
    """
    statement = _INSERT if all(job.unique_key is None for job in jobs) else _INSERT_NEW
    rows = "[" + ",".join(_as_json(job) for job in jobs) + "]"
    return [
        Accepted(row.id, JobStatus(row.status), row.reason) for row in connection.execute(statement, {"rows": rows})
    ]


def _as_json(job: NewJob) -> str:
    fields = {**asdict(job), "id": str(job.id), "schedule_id": job.schedule_id and str(job.schedule_id)}
    del fields["restrictions"]  # rows of their own: see slots
    fields["held_by"] = job.held_by
    payload = fields.pop("payload")
    return json.dumps(fields)[:-1] + f', "payload": {payload}}}'
