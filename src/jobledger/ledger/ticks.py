"""Schedules and their ticks: a fire time is a row, and a row can be written once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_UPSERT: Final = sa.text("""
INSERT INTO schedules AS s (id, name, trigger, timezone)
VALUES (CAST(:id AS uuid), :name, :trigger, :timezone)
ON CONFLICT (name) DO UPDATE SET trigger = excluded.trigger, timezone = excluded.timezone, updated_at = now()
 WHERE (s.trigger, s.timezone) IS DISTINCT FROM (excluded.trigger, excluded.timezone)
""")


def upsert_schedule(connection: Connection, new_id: UUID, name: str, trigger: str, timezone: str) -> None:
    """Write the definition of a schedule; its id and creation stay what they were."""
    connection.execute(_UPSERT, {"id": str(new_id), "name": name, "trigger": trigger, "timezone": timezone})


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """What deciding about a schedule's fire times needs."""

    id: UUID
    name: str
    created_at: datetime
    fired: frozenset[datetime]


_SCHEDULES: Final = sa.text("""
SELECT s.id, s.name, s.created_at,
       ARRAY(SELECT t.fire_at FROM schedule_ticks t
              WHERE t.schedule_id = s.id AND t.fire_at > now() - make_interval(secs => :window_seconds)) AS fired
  FROM schedules s WHERE s.name = ANY(CAST(:names AS text[]))
""")


def schedules(
    connection: Connection, names: Sequence[str], window_seconds: float
) -> tuple[datetime, dict[str, ScheduleRow]]:
    """The database's time, and the schedules of these names, with what of the last seconds was fired."""
    now = connection.execute(sa.text("SELECT now()")).scalar_one()
    rows = connection.execute(_SCHEDULES, {"names": list(names), "window_seconds": window_seconds})
    return now, {row.name: ScheduleRow(row.id, row.name, row.created_at, frozenset(row.fired)) for row in rows}


_TAKE: Final = sa.text("""
INSERT INTO schedule_ticks (schedule_id, fire_at, scheduler)
VALUES (CAST(:schedule_id AS uuid), :fire_at, :scheduler)
ON CONFLICT (schedule_id, fire_at) DO NOTHING RETURNING fire_at
""")


def take_tick(connection: Connection, schedule_id: UUID, fire_at: datetime, scheduler: str) -> bool:
    """Take a fire time for this transaction; another scheduler that tries waits for its end.

    Returns:
        False if somebody has fired it.
    """
    row = connection.execute(
        _TAKE, {"schedule_id": str(schedule_id), "fire_at": fire_at, "scheduler": scheduler}
    ).one_or_none()
    return row is not None
