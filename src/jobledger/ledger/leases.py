"""Leases of running attempts, the sessions that they use, and attempts whose lease is stale.

The lease is a column of the attempt's row, in no index: renewing it is one heap-only update.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.connections.postgres import SESSION_SETTINGS
from jobledger.domain.records import Backend
from jobledger.ledger.direct import Executor


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress that a running job reports; None leaves the value in the row."""

    progress_done: int | None = None
    progress_total: int | None = None
    progress_note: str | None = None
    log_tail: str | None = None


_RENEW: Final = sa.text("""
UPDATE job_attempts a
   SET lease_expires_at = now() + make_interval(secs => :lease_seconds),
       progress_done = coalesce(:progress_done, a.progress_done),
       progress_total = coalesce(:progress_total, a.progress_total),
       progress_note = coalesce(:progress_note, a.progress_note),
       log_tail = coalesce(:log_tail, a.log_tail)
  FROM job_statuses j
 WHERE a.job_id = CAST(:id AS uuid) AND a.number = :attempt AND a.outcome IS NULL
   AND j.id = a.job_id AND j.attempt = a.number AND j.status = 'started'
RETURNING a.number
""")


def renew(connection: Connection, job_id: UUID, attempt: int, lease_seconds: float, progress: Progress) -> bool:
    """Renew the lease of a running attempt and write down its progress.

    Returns:
        False if the attempt was fenced out: it must end itself and write nothing.
    """
    row = connection.execute(
        _RENEW, {"id": str(job_id), "attempt": attempt, "lease_seconds": lease_seconds, **asdict(progress)}
    ).one_or_none()
    return row is not None


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of one attempt.

    Attributes:
        renew: its lease is due, or progress is to be written; otherwise only the answer is wanted.
    """

    id: UUID
    attempt: int
    lease_seconds: float
    renew: bool = True
    progress: Progress = Progress()


@dataclass(frozen=True, slots=True)
class Heard:
    """The ledger's answer to a sign of life.

    Attributes:
        renewed: the lease was renewed.
        counts: the attempt is still the job's current one; if not, it was fenced out.
        cancel_reason: who wants the job canceled, and why; None if there is no such request.
    """

    id: UUID
    attempt: int
    renewed: bool
    counts: bool
    cancel_reason: str | None


_BEAT: Final = sa.text("""
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS g(
           given_id uuid, given_attempt int, renew bool, lease_seconds float8, progress_done bigint,
           progress_total bigint, progress_note text, log_tail text)
), locked AS MATERIALIZED (
    SELECT g.* FROM given g JOIN job_attempts a ON a.job_id = g.given_id AND a.number = g.given_attempt
     WHERE g.renew AND a.outcome IS NULL ORDER BY a.job_id, a.number FOR NO KEY UPDATE OF a SKIP LOCKED
), renewed AS (
    UPDATE job_attempts a
       SET lease_expires_at = now() + make_interval(secs => l.lease_seconds),
           progress_done = coalesce(l.progress_done, a.progress_done),
           progress_total = coalesce(l.progress_total, a.progress_total),
           progress_note = coalesce(l.progress_note, a.progress_note),
           log_tail = coalesce(l.log_tail, a.log_tail)
      FROM locked l, job_statuses j
     WHERE a.job_id = l.given_id AND a.number = l.given_attempt AND a.outcome IS NULL
       AND j.id = a.job_id AND j.attempt = a.number AND j.status = 'started'
    RETURNING a.job_id, a.number
)
SELECT g.given_id AS id, g.given_attempt AS attempt, renewed.job_id IS NOT NULL AS renewed,
       j.id IS NOT NULL AS counts, r.reason AS cancel_reason
  FROM given g
  LEFT JOIN renewed ON renewed.job_id = g.given_id AND renewed.number = g.given_attempt
  LEFT JOIN job_statuses j ON j.id = g.given_id AND j.attempt = g.given_attempt AND j.status = 'started'
  LEFT JOIN cancel_requests r ON r.job_id = j.id AND j.cancel_requested_at IS NOT NULL
""")


def beat(connection: Connection, beats: Sequence[Beat]) -> list[Heard]:
    """Renew the leases of running attempts, write down their progress, and ask whether they are to go on.

    One statement for all of them. A row that another transaction has locked is skipped: its attempt counts, but is not
    renewed; `renew` waits for the lock.
    """
    rows = [
        {
            "given_id": str(one.id),
            "given_attempt": one.attempt,
            "renew": one.renew,
            "lease_seconds": one.lease_seconds,
            **asdict(one.progress),
        }
        for one in beats
    ]
    return [Heard(**row._mapping) for row in connection.execute(_BEAT, {"rows": json.dumps(rows)})]


_NOTE_BACKEND: Final = sa.text("""
UPDATE job_attempts SET backend_pid = :pid, backend_started_at = CAST(:started_at AS timestamptz)
 WHERE job_id = CAST(:id AS uuid) AND number = :attempt AND outcome IS NULL
RETURNING number
""")


def note_backend(connection: Executor, job_id: UUID, attempt: int, backend: Backend) -> bool:
    """Note the session that an attempt is about to use, before its transaction begins.

    Returns:
        False if the attempt has ended: it was fenced out, and must write nothing.
    """
    parameters = {"id": str(job_id), "attempt": attempt, "pid": backend.pid, "started_at": backend.started_at}
    return connection.execute(_NOTE_BACKEND, parameters).one_or_none() is not None


_THIS_BACKEND: Final = sa.text("""
SELECT pid, backend_start AS started_at,
       (SELECT count(set_config(key, value, false)) FROM json_each_text(CAST(:settings AS json))) AS count
  FROM pg_stat_get_activity(pg_backend_pid())
""")
_SETTINGS: Final = json.dumps(SESSION_SETTINGS)


def this_backend(connection: Executor) -> Backend:
    """The session of a connection. Also applies its settings, since a pooler may have dropped the startup options."""
    (row,) = connection.execute(_THIS_BACKEND, {"settings": _SETTINGS})
    return Backend(row.pid, row.started_at)


@dataclass(frozen=True, slots=True)
class Running:
    """A started job, with the facts that decide about its end."""

    id: UUID
    attempt: int
    worker: str
    lease_stale: bool
    cancel_overdue: bool
    """Its process has had the time to obey a cancel request, and has not."""
    isolated: bool
    """Its process runs nothing else, so the death of the process counts against the job."""
    age_seconds: float
    """Since the attempt began."""
    max_attempts: int
    errors: int
    crashes: int
    losses: int


_RUNNING: Final = """
SELECT j.id, j.attempt, a.worker, a.lease_expires_at < now() AS lease_stale,
       coalesce(j.cancel_requested_at < now() - make_interval(secs => :cancel_seconds), false) AS cancel_overdue,
       a.isolated, CAST(extract(epoch FROM clock_timestamp() - a.started_at) AS float8) AS age_seconds,
       j.max_attempts, j.errors, j.crashes, j.losses
  FROM job_statuses j JOIN job_attempts a ON a.job_id = j.id AND a.number = j.attempt
 WHERE j.status = 'started'
"""
_ALL_RUNNING: Final = sa.text(f"{_RUNNING} ORDER BY a.lease_expires_at LIMIT :limit")
_ONE_RUNNING: Final = sa.text(f"{_RUNNING} AND j.id = CAST(:id AS uuid) AND j.attempt = :attempt")


def running(connection: Connection, cancel_seconds: float, limit: int) -> list[Running]:
    """The started jobs, oldest lease first.

    Args:
        cancel_seconds: the time that a cancel request leaves to the process that runs the job.
        limit: jobs at most.
    """
    rows = connection.execute(_ALL_RUNNING, {"cancel_seconds": cancel_seconds, "limit": limit})
    return [Running(**row._mapping) for row in rows]


def running_attempt(connection: Connection, job_id: UUID, attempt: int) -> Running | None:
    """One attempt, if it is still the job's current one and has not ended."""
    parameters = {"cancel_seconds": 0.0, "id": str(job_id), "attempt": attempt}
    row = connection.execute(_ONE_RUNNING, parameters).one_or_none()
    return Running(**row._mapping) if row is not None else None


# Pids are reused, so a session is identified by its start, too. Attempts of version 0.1 have noted no start: their
# session started before them. The start is null for sessions of another role, which cannot be ended anyway.
_SESSION: Final = """
  FROM job_attempts a JOIN pg_stat_activity s ON s.pid = a.backend_pid AND (
       s.backend_start = a.backend_started_at
       OR (a.backend_started_at IS NULL AND s.backend_start <= a.started_at))
 WHERE a.job_id = CAST(:id AS uuid) AND a.number = :attempt AND a.outcome IS NULL AND s.pid <> pg_backend_pid()
"""
_END_BACKEND: Final = sa.text(
    f"SELECT pg_terminate_backend(s.pid, 2000) {_SESSION} AND (:surely OR a.lease_expires_at < now())"
)
_CANCEL_STATEMENT: Final = sa.text(f"SELECT pg_cancel_backend(s.pid) {_SESSION}")
_LOST: Final = """
SELECT true FROM job_statuses j JOIN job_attempts a ON a.job_id = j.id AND a.number = j.attempt
 WHERE j.id = CAST(:id AS uuid) AND j.attempt = :attempt AND j.status = 'started'
   AND (:surely OR a.lease_expires_at < now())
"""
_IS_LOST: Final = sa.text(_LOST)
_LOCK_LOST: Final = sa.text(f"{_LOST} FOR NO KEY UPDATE OF j SKIP LOCKED")
_PROVE_WRITABLE: Final = sa.text("LOCK TABLE job_attempts IN ROW EXCLUSIVE MODE")


def end_backend(connection: Connection, job_id: UUID, attempt: int, *, surely: bool) -> None:
    """End the Postgres session of an attempt that is being fenced out, and wait for it, at most 2 s.

    A frozen process keeps its locks until its session ends. If the session outlives the wait, the fence still keeps
    it from committing.

    Args:
        surely: the attempt is known to be over; otherwise only if its lease is stale now.
    """
    connection.execute(_END_BACKEND, {"id": str(job_id), "attempt": attempt, "surely": surely})


def cancel_statement(connection: Connection, job_id: UUID, attempt: int) -> None:
    """Cancel the statement that an attempt's session executes."""
    connection.execute(_CANCEL_STATEMENT, {"id": str(job_id), "attempt": attempt})


_RESTARTED: Final = sa.text("""
SELECT pg_postmaster_start_time() > a.started_at FROM job_attempts a
 WHERE a.job_id = CAST(:id AS uuid) AND a.number = :attempt
""")


def server_restarted(connection: Connection, job_id: UUID, attempt: int) -> bool:
    """Whether Postgres has restarted since an attempt began: then the loss of its connections is not its fault."""
    return bool(connection.execute(_RESTARTED, {"id": str(job_id), "attempt": attempt}).scalar())


_ANSWER: Final = sa.text("SELECT 1")


def probe(connection: Connection) -> None:
    """Ask Postgres for an answer that needs no lock and no disk."""
    connection.execute(_ANSWER)


def lock_if_lost(connection: Connection, job_id: UUID, attempt: int, *, surely: bool) -> bool:
    """Lock the row of an attempt that is over, for this transaction.

    Returns:
        False if it is not over after all (renewed, or ended by another process), or if another transaction has the row
        locked: another reaper, or a dispatch with `after=`; the next sweep looks again.
    """
    found = connection.execute(_LOCK_LOST, {"id": str(job_id), "attempt": attempt, "surely": surely})
    return found.one_or_none() is not None


def is_lost(connection: Connection, job_id: UUID, attempt: int, *, surely: bool) -> bool:
    """Whether an attempt is over, by the committed row, without a lock; see `lock_if_lost`."""
    found = connection.execute(_IS_LOST, {"id": str(job_id), "attempt": attempt, "surely": surely})
    return found.one_or_none() is not None


def prove_writable(connection: Connection) -> None:
    """Take the lock that renewals take on the table of attempts; without it, a stale lease proves nothing.

    Raises:
        LockTimeout: another transaction has the table locked, as one that builds an index does.
    """
    connection.execute(_PROVE_WRITABLE)
