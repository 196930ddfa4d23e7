"""What mirroring a job costs before any guarantee: a row is claimed and finished, and that is all.

No lease, no attempt rows, no payload checked, no alarm, no log. As a configuration for bare workers it loads itself in
the worker's parent, so that a work-horse imports nothing.
"""

import os

import psycopg2

TABLE = (
    """CREATE TABLE IF NOT EXISTS sketched (
        id uuid PRIMARY KEY, status text NOT NULL DEFAULT 'queued', attempt integer NOT NULL DEFAULT 0,
        started_at timestamptz, finished_at timestamptz, lease_expires_at timestamptz
    ) WITH (fillfactor = 50)""",
    "TRUNCATE sketched",
)
CLAIM = (
    "UPDATE sketched SET status = 'started', attempt = attempt + 1, started_at = now(),"
    " lease_expires_at = now() + interval '30 s' WHERE id = {} AND status = 'queued' RETURNING attempt"
)
FINISH = (
    "UPDATE sketched SET status = 'completed', finished_at = now(), lease_expires_at = NULL"
    " WHERE id = {} AND status = 'started' AND attempt = {} RETURNING id"
)
kept: "psycopg2.extensions.connection | None" = None


def run(job_id: str) -> None:
    """Claim and finish a row, each with a commit."""
    if kept is not None:
        claim_and_finish(kept, "EXECUTE claim (%s)", "EXECUTE finish (%s, %s)", job_id)
        return
    connection = connect()
    claim_and_finish(connection, CLAIM.format("%s"), FINISH.format("%s", "%s"), job_id)
    connection.close()


def connect() -> "psycopg2.extensions.connection":
    """A connection whose every statement commits."""
    connection = psycopg2.connect(os.environ["JOBLEDGER_DATABASE_URL"].replace("+psycopg2", ""))
    connection.autocommit = True
    return connection


def claim_and_finish(connection: "psycopg2.extensions.connection", claim: str, finish: str, job_id: str) -> None:
    """The two statements."""
    with connection.cursor() as cursor:
        cursor.execute(claim, (job_id,))
        (attempt,) = cursor.fetchone()
        cursor.execute(finish, (job_id, attempt))
