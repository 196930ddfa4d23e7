"""What every statement that queues an ended job again has in common.

Such a statement has a part `moved`, which sets `SET` and gives back `COLUMNS`; then `FORGOTTEN`.
"""

from typing import Final

SET: Final = """
           status = 'queued', reason = NULL, result = NULL, finished_at = NULL, expires_at = NULL,
           cancel_requested_at = NULL, waiting_parents = 0, errors = 0, crashes = 0, losses = 0,
           available_at = statement_timestamp(), queued_at = statement_timestamp(), pushed_at = statement_timestamp(),
           push_count = push_count + 1, updated_at = statement_timestamp()
"""

COLUMNS: Final = "id, queue, job_type, title, timeout_seconds, push_count"

FORGOTTEN: Final = """
forgotten AS (
    DELETE FROM lost_wakes l USING moved WHERE l.job_id = moved.id
), granted AS (
    DELETE FROM cancel_requests r USING moved WHERE r.job_id = moved.id
)"""
