"""What every statement that fails a job has in common: it inserts the job that calls `on_failed`.

Such a statement has a part `moved`, which gives back `COLUMNS` and a `callback_id`, the id of that job if there will be
one; then `CALLBACK`; and it ends with `FAILED`. Its parameter `callback_type` is `ON_FAILED_TYPE`.
"""

from typing import Any, Final

from jobledger.ledger.rows import Failed
from jobledger.wake import Wake

COLUMNS: Final = "id, attempt, job_type, queue, priority, owner, timeout_seconds, has_children, has_on_failed"

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
    """A row of `FAILED`."""
    callback = Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds) if row.id is not None else None
    return Failed(row.has_children, callback)
