"""Schedules: their definitions and states. Guarded statements here decide which definition is in the row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

UNSEEN_SECONDS: Final = 90.0
"""A definition that no scheduler has confirmed for so long is gone; longer than any scheduler backs off."""

GONE_FOR_GOOD_SECONDS: Final = 3600.0
"""A schedule that comes back later than this after its removal decides from that time on."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule, as the ledger has it.

    Attributes:
        definition: None if a version of jobledger wrote the row that kept definitions in code.
        decided_until: every fire time up to here was fired, skipped or given up.
        seen_seconds_ago: since a running scheduler confirmed this definition.
        is_paused: at this moment.
    """

    id: UUID
    name: str
    trigger: str
    timezone: str
    definition: dict[str, Any] | None
    fingerprint: str | None
    created_at: datetime
    decided_until: datetime
    seen_seconds_ago: float
    removed_at: datetime | None
    paused_at: datetime | None
    paused_until: datetime | None
    paused_by: str | None
    pause_reason: str | None
    is_paused: bool
    error: str | None
    failed_at: datetime | None


_COLUMNS: Final = """
       id, name, trigger, timezone, definition, fingerprint, created_at, decided_until,
       CAST(extract(epoch FROM now() - seen_at) AS float8) AS seen_seconds_ago,
       removed_at, paused_at, paused_until, paused_by, pause_reason,
       paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > now()) AS is_paused, error, failed_at
"""
_NAMED: Final = sa.text(f"SELECT {_COLUMNS} FROM schedules WHERE name = ANY(CAST(:names AS text[]))")  # noqa: S608
_ALL: Final = sa.text(f"SELECT {_COLUMNS} FROM schedules ORDER BY name")  # noqa: S608 - few rows, all are wanted


def now(connection: Connection) -> datetime:
    """The database's time, in this transaction."""
    moment: datetime = connection.execute(sa.text("SELECT now()")).scalar_one()
    return moment


def named(connection: Connection, names: Sequence[str]) -> dict[str, ScheduleRow]:
    """The schedules of these names that exist."""
    rows = connection.execute(_NAMED, {"names": list(names)})
    return {row.name: ScheduleRow(**row._mapping) for row in rows}


def list_all(connection: Connection) -> list[ScheduleRow]:
    """All schedules, by name."""
    return [ScheduleRow(**row._mapping) for row in connection.execute(_ALL)]


_INSERT: Final = sa.text("""
INSERT INTO schedules (id, name, trigger, timezone, definition, fingerprint, known_fingerprints)
VALUES (CAST(:id AS uuid), :name, :trigger, :timezone, CAST(:definition AS jsonb), :fingerprint,
        ARRAY[CAST(:fingerprint AS text)])
ON CONFLICT (name) DO NOTHING
""")
_REPLACE: Final = sa.text("""
UPDATE schedules s
   SET decided_until = CASE WHEN s.removed_at < now() - make_interval(secs => :gone_seconds)
                              OR s.definition -> 'when' <> CAST(:definition AS jsonb) -> 'when'
                            THEN greatest(s.decided_until, now())
                            WHEN s.fingerprint IS NULL  -- code without definitions fires in order, and notes ticks only
                            THEN greatest(s.decided_until, (SELECT max(t.fire_at) FROM schedule_ticks t
                                                             WHERE t.schedule_id = s.id AND t.fire_at <= now()))
                            ELSE s.decided_until END,
       trigger = :trigger, timezone = :timezone, definition = CAST(:definition AS jsonb), fingerprint = :fingerprint,
       known_fingerprints = array_append(array_remove(s.known_fingerprints, CAST(:fingerprint AS text)),
                                         CAST(:fingerprint AS text)),
       removed_at = NULL, seen_at = now(), updated_at = now()
 WHERE s.id = CAST(:id AS uuid) AND s.fingerprint IS NOT DISTINCT FROM CAST(:replaced AS text)
   AND (s.fingerprint IS NULL OR s.removed_at IS NOT NULL
        OR (:in_touch AND s.seen_at < now() - make_interval(secs => :unseen_seconds))
        OR NOT CAST(:fingerprint AS text) = ANY(s.known_fingerprints))
RETURNING s.id
""")


@dataclass(frozen=True, slots=True)
class NewDefinition:
    """A definition, in the form of the columns."""

    name: str
    trigger: str
    timezone: str
    definition: dict[str, Any]
    fingerprint: str


def insert(connection: Connection, new_id: UUID, one: NewDefinition) -> None:
    """Insert a schedule, unless another scheduler has just inserted it."""
    connection.execute(_INSERT, {"id": str(new_id), **_parameters(one)})


def replace(connection: Connection, row: ScheduleRow, one: NewDefinition, *, in_touch: bool) -> bool:
    """Put another definition in the place of the row's, or bring a removed schedule back.

    A definition that was never in the row is newer, and is written at once. A former definition comes back only when
    no running scheduler has the row's: so an old process that restarts in the middle of a deployment changes nothing,
    and a deployment that is rolled back does, soon after the newer processes have gone. New fire times begin now, and
    so do those of a schedule that was gone for an hour.

    Args:
        in_touch: whether this process has looked without a break for long enough to have seen other schedulers.

    Returns:
        False if the row's definition stays.
    """
    parameters = {
        "id": str(row.id),
        "replaced": row.fingerprint,
        "unseen_seconds": UNSEEN_SECONDS,
        "gone_seconds": GONE_FOR_GOOD_SECONDS,
        "in_touch": in_touch,
    }
    return connection.execute(_REPLACE, {**parameters, **_parameters(one)}).one_or_none() is not None


def _parameters(one: NewDefinition) -> dict[str, Any]:
    return {
        "name": one.name,
        "trigger": one.trigger,
        "timezone": one.timezone,
        "definition": json.dumps(one.definition),
        "fingerprint": one.fingerprint,
    }


_HEARTBEAT: Final = sa.text("""
UPDATE schedules SET seen_at = now()
 WHERE id IN (SELECT id FROM schedules WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
""")
_REMOVE: Final = sa.text("""
UPDATE schedules SET removed_at = now(), updated_at = now()
 WHERE removed_at IS NULL AND name <> ALL(CAST(:own AS text[]))
   AND seen_at < now() - make_interval(secs => :unseen_seconds)
RETURNING name
""")


def heartbeat(connection: Connection, ids: Sequence[UUID]) -> None:
    """Confirm that a running scheduler has these schedules' definitions."""
    connection.execute(_HEARTBEAT, {"ids": [str(one) for one in ids]})


def mark_removed(connection: Connection, own: Sequence[str], unseen_seconds: float) -> list[str]:
    """Mark the schedules that no running scheduler defines as removed; they fire no more, and stay in lists.

    Args:
        own: names of the schedules that this process defines.
        unseen_seconds: without a heartbeat; the caller has been in touch for as long.

    Returns:
        The names of those marked.
    """
    return sorted(connection.execute(_REMOVE, {"own": list(own), "unseen_seconds": unseen_seconds}).scalars())


_DECIDE: Final = sa.text("""
UPDATE schedules SET decided_until = :moment
 WHERE id = CAST(:id AS uuid) AND decided_until < :moment
""")
_WORKS: Final = sa.text("""
UPDATE schedules SET error = NULL, failed_at = NULL WHERE id = CAST(:id AS uuid) AND error IS NOT NULL
""")
_FAILS: Final = sa.text("""
UPDATE schedules SET error = :error, failed_at = now() WHERE id = CAST(:id AS uuid)
""")


def decide_until(connection: Connection, schedule_id: UUID, moment: datetime) -> None:
    """Note that every fire time up to this moment is decided; it never goes back."""
    connection.execute(_DECIDE, {"id": str(schedule_id), "moment": moment})


def note_success(connection: Connection, schedule_id: UUID) -> None:
    """Forget the last error."""
    connection.execute(_WORKS, {"id": str(schedule_id)})


def note_error(connection: Connection, schedule_id: UUID, error: str) -> None:
    """Keep the error of a firing, for people."""
    connection.execute(_FAILS, {"id": str(schedule_id), "error": error})


_PAUSE: Final = sa.text("""
UPDATE schedules
   SET paused_at = now(), paused_until = CAST(:until AS timestamptz), paused_by = :by, pause_reason = :reason,
       updated_at = now()
 WHERE name = :name AND removed_at IS NULL RETURNING id
""")
_RESUME: Final = sa.text("""
UPDATE schedules
   SET paused_at = NULL, paused_until = NULL, paused_by = NULL, pause_reason = NULL,
       decided_until = greatest(decided_until, least(coalesce(paused_until, now()), now())), updated_at = now()
 WHERE name = :name AND paused_at IS NOT NULL RETURNING id
""")


def pause(connection: Connection, name: str, until: datetime | None, by: str, reason: str | None) -> bool:
    """Let a schedule fire no more until a moment, or until it is resumed.

    Returns:
        False if there is no such schedule, or it is removed.
    """
    parameters = {"name": name, "until": until, "by": by, "reason": reason}
    return connection.execute(_PAUSE, parameters).one_or_none() is not None


def resume(connection: Connection, name: str) -> bool:
    """End a pause; fire times within it are not made up for.

    Returns:
        False if it was not paused.
    """
    return connection.execute(_RESUME, {"name": name}).one_or_none() is not None
