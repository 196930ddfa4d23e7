"""Ticks: a fire time has one row, which is written once and fired once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.connections.locks import waiting_for_locks
from jobledger.domain.tick import Tick, TickKind, TickOutcome
from jobledger.ledger.direct import Executor

_TURN: Final = sa.text("""
SELECT pg_try_advisory_xact_lock(1785686130, hashtext(:id)),
       set_config('idle_in_transaction_session_timeout', :milliseconds, true)
""")


def take_turn(connection: Connection, schedule_id: UUID, idle_seconds: float) -> bool:
    """Lock this schedule against other schedulers, until the transaction's end.

    Args:
        idle_seconds: Postgres ends the transaction after so long a silence, such as that of a frozen process.

    Returns:
        False if another scheduler fires it now.
    """
    parameters = {"id": str(schedule_id), "milliseconds": str(int(idle_seconds * 1000))}
    return bool(connection.execute(_TURN, parameters).scalar_one())


@dataclass(frozen=True, slots=True)
class NewTick:
    """A tick to be written.

    Attributes:
        scheduler: host:pid of the process.
        reason: of a skipped tick.
    """

    schedule_id: UUID
    fire_at: datetime
    previous_at: datetime | None
    timezone: str
    scheduler: str
    outcome: TickOutcome = TickOutcome.FIRED
    reason: str | None = None


_TAKE: Final = sa.text("""
INSERT INTO schedule_ticks (schedule_id, fire_at, previous_at, timezone, scheduler, outcome, reason, fired_at)
VALUES (CAST(:schedule_id AS uuid), :fire_at, :previous_at, :timezone, :scheduler, :outcome, :reason,
        CASE WHEN :outcome = 'fired' THEN statement_timestamp() END)
ON CONFLICT (schedule_id, fire_at) DO NOTHING RETURNING fire_at
""")
_TAKE_WAITING: Final = sa.text("""
UPDATE schedule_ticks
   SET outcome = :outcome, reason = :reason, scheduler = :scheduler,
       fired_at = CASE WHEN :outcome = 'fired' THEN statement_timestamp() END
 WHERE schedule_id = CAST(:schedule_id AS uuid) AND fire_at = :fire_at AND outcome = 'waiting'
RETURNING fire_at
""")


def take(connection: Connection, tick: NewTick) -> bool:
    """Write the tick of a fire time that has come; another scheduler that tries waits for this transaction's end.

    Returns:
        False if there is one: another scheduler has fired or skipped it.
    """
    parameters = {name: getattr(tick, name) for name in tick.__slots__} | {"schedule_id": str(tick.schedule_id)}
    return connection.execute(_TAKE, parameters).one_or_none() is not None


def take_waiting(
    connection: Connection,
    schedule_id: UUID,
    fire_at: datetime,
    scheduler: str,
    outcome: TickOutcome = TickOutcome.FIRED,
    reason: str | None = None,
) -> bool:
    """waiting -> fired or skipped.

    Returns:
        False if the tick does not wait any more.
    """
    parameters = {"schedule_id": str(schedule_id), "fire_at": fire_at, "scheduler": scheduler}
    row = connection.execute(_TAKE_WAITING, {**parameters, "outcome": outcome, "reason": reason}).one_or_none()
    return row is not None


_UNFINISHED: Final = sa.text("""
SELECT EXISTS (SELECT FROM job_statuses WHERE schedule_id = CAST(:id AS uuid) AND finished_at IS NULL)
""")
_WAITING_COUNT: Final = sa.text("""
SELECT count(*) FROM (SELECT FROM schedule_ticks WHERE schedule_id = CAST(:id AS uuid) AND outcome = 'waiting'
                         AND kind = 'scheduled' LIMIT :limit) AS queued
""")


def has_unfinished_jobs(connection: Connection, schedule_id: UUID) -> bool:
    """Whether a job that this schedule dispatched has not ended."""
    return bool(connection.execute(_UNFINISHED, {"id": str(schedule_id)}).scalar_one())


def count_queued(connection: Connection, schedule_id: UUID, limit: int) -> int:
    """The number of fire times that wait for the end of earlier jobs, counted up to a limit."""
    return int(connection.execute(_WAITING_COUNT, {"id": str(schedule_id), "limit": limit}).scalar_one())


@dataclass(frozen=True, slots=True)
class WaitingTick:
    """A tick that a person asked for, or that waits for earlier jobs to end."""

    schedule_id: UUID
    fire_at: datetime
    kind: TickKind
    previous_at: datetime | None


_WAITING: Final = sa.text("""
SELECT w.* FROM unnest(CAST(:ids AS uuid[])) AS s(id)
 CROSS JOIN LATERAL (SELECT schedule_id, fire_at, kind, previous_at FROM schedule_ticks
                      WHERE schedule_id = s.id AND outcome = 'waiting'
                      ORDER BY kind <> 'manual', fire_at LIMIT :limit) AS w
 ORDER BY w.schedule_id, w.kind <> 'manual', w.fire_at
""")


def waiting(connection: Connection, schedule_ids: Sequence[UUID], limit: int) -> dict[UUID, list[WaitingTick]]:
    """Ticks that wait: for each schedule the manual ones, then the oldest fire times; at most `limit`."""
    rows = connection.execute(_WAITING, {"ids": [str(one) for one in schedule_ids], "limit": limit})
    found: dict[UUID, list[WaitingTick]] = {}
    for row in rows:
        tick = WaitingTick(row.schedule_id, row.fire_at, TickKind(row.kind), row.previous_at)
        found.setdefault(row.schedule_id, []).append(tick)
    return found


_FAILED: Final = sa.text("""
UPDATE schedule_ticks
   SET errors = errors + 1, scheduler = :scheduler,
       outcome = CASE WHEN errors + 1 >= :most_errors THEN 'failed' ELSE 'waiting' END,
       reason = CASE WHEN errors + 1 >= :most_errors THEN :error END
 WHERE schedule_id = CAST(:schedule_id AS uuid) AND fire_at = :fire_at AND outcome = 'waiting'
""")


def note_failure(
    connection: Connection, schedule_id: UUID, fire_at: datetime, scheduler: str, error: str, most_errors: int
) -> None:
    """Count a failed firing of a waiting tick; waiting -> failed after too many."""
    parameters = {"schedule_id": str(schedule_id), "fire_at": fire_at, "scheduler": scheduler}
    connection.execute(_FAILED, {**parameters, "error": error, "most_errors": most_errors})


LOCK_SECONDS: Final = 3.0
"""The wait for a tick that is being fired."""

_REQUEST: Final = sa.text("""
INSERT INTO schedule_ticks AS t
       (schedule_id, fire_at, previous_at, timezone, kind, outcome, requested_by, fired_at, scheduler)
SELECT CAST(:schedule_id AS uuid), n.fire_at, n.previous_at, :timezone, :kind, 'waiting', :by, NULL, NULL
  FROM unnest(CAST(:moments AS timestamptz[]), CAST(:previous AS timestamptz[])) AS n(fire_at, previous_at)
ON CONFLICT (schedule_id, fire_at) DO UPDATE
   SET outcome = 'waiting', kind = excluded.kind, requested_by = excluded.requested_by, errors = 0, reason = NULL
 WHERE t.outcome IN ('skipped', 'failed')
RETURNING t.fire_at
""")


def request(
    connection: Connection,
    schedule_id: UUID,
    moments: Sequence[tuple[datetime, datetime | None]],
    timezone: str,
    kind: TickKind,
    by: str | None,
) -> list[datetime]:
    """Have ticks fired later, such as those that a person asks for; fired and waiting ticks stay as they are.

    Waits a few seconds for a tick that is being fired.

    Args:
        moments: fire times, each with the one before it.

    Returns:
        The fire times that this call has made wait.

    Raises:
        LockTimeout: a tick is being fired for longer than `LOCK_SECONDS`.
    """
    parameters = {
        "schedule_id": str(schedule_id),
        "moments": [one for one, _ in moments],
        "previous": [one for _, one in moments],
        "timezone": timezone,
        "kind": kind,
        "by": by,
    }
    with waiting_for_locks(connection, LOCK_SECONDS):
        return sorted(connection.execute(_REQUEST, parameters).scalars())


@dataclass(frozen=True, slots=True)
class TickRow:
    """A tick, as people and jobs see it."""

    schedule: str
    fire_at: datetime
    previous_at: datetime | None
    timezone: str
    kind: TickKind
    outcome: TickOutcome
    fired_at: datetime | None
    reason: str | None

    def as_tick(self) -> Tick:
        """The tick as a job sees it, in the schedule's time zone."""
        zone = ZoneInfo(self.timezone)
        return Tick(
            schedule=self.schedule,
            logical_time=self.fire_at.astimezone(zone),
            previous=self.previous_at.astimezone(zone) if self.previous_at is not None else None,
            fired_at=(self.fired_at or self.fire_at).astimezone(zone),
            kind=self.kind,
        )


_COLUMNS: Final = "s.name AS schedule, t.fire_at, t.previous_at, t.timezone, t.kind, t.outcome, t.fired_at, t.reason"
_OF_JOB: Final = sa.text(f"""
SELECT {_COLUMNS} FROM job_statuses j
  JOIN schedule_ticks t ON t.schedule_id = j.schedule_id AND t.fire_at = j.fire_at
  JOIN schedules s ON s.id = t.schedule_id
 WHERE j.id = CAST(:id AS uuid)
""")  # noqa: S608 - put together from constants
_LAST: Final = sa.text(f"""
SELECT {_COLUMNS} FROM schedules s
 CROSS JOIN LATERAL (SELECT * FROM schedule_ticks WHERE schedule_id = s.id AND outcome <> 'waiting'
                      ORDER BY fire_at DESC LIMIT 1) AS t
""")  # noqa: S608 - put together from constants
_AMONG: Final = sa.text(f"""
SELECT {_COLUMNS} FROM schedule_ticks t JOIN schedules s ON s.id = t.schedule_id
 WHERE t.schedule_id = CAST(:id AS uuid) AND t.fire_at = ANY(CAST(:moments AS timestamptz[])) ORDER BY t.fire_at
""")  # noqa: S608 - put together from constants


def of_job(connection: Executor, job_id: UUID) -> TickRow | None:
    """The tick that dispatched a job; None if no schedule did."""
    row = connection.execute(_OF_JOB, {"id": str(job_id)}).one_or_none()
    return _tick_row(row) if row is not None else None


def last_of_each(connection: Connection) -> dict[str, TickRow]:
    """The newest decided tick of each schedule, by the schedule's name."""
    return {row.schedule: _tick_row(row) for row in connection.execute(_LAST)}


def among(connection: Connection, schedule_id: UUID, moments: Sequence[datetime]) -> list[TickRow]:
    """The ticks of these fire times, oldest first."""
    rows = connection.execute(_AMONG, {"id": str(schedule_id), "moments": list(moments)})
    return [_tick_row(row) for row in rows]


def _tick_row(row: object) -> TickRow:
    values = {name: getattr(row, name) for name in TickRow.__slots__}
    return TickRow(**{**values, "kind": TickKind(values["kind"]), "outcome": TickOutcome(values["outcome"])})
