"""Who the schedulers are: each says every few seconds that it is there."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

FORGOTTEN_SECONDS: Final = 86400.0


@dataclass(frozen=True, slots=True)
class SchedulerRow:
    """A scheduler process.

    Attributes:
        name: host:pid.
        seen_seconds_ago: since it last said that it is there.
    """

    name: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_seconds_ago: float


_SEE: Final = sa.text("""
WITH forgotten AS (
    DELETE FROM schedulers WHERE name <> :name AND seen_at < now() - make_interval(secs => :forgotten_seconds)
)
INSERT INTO schedulers (name, host, pid, version) VALUES (:name, :host, :pid, :version)
ON CONFLICT (name) DO UPDATE SET seen_at = now(), version = excluded.version
""")
_FORGET: Final = sa.text("DELETE FROM schedulers WHERE name = :name")
_ALL: Final = sa.text("""
SELECT name, host, pid, version, started_at, CAST(extract(epoch FROM now() - seen_at) AS float8) AS seen_seconds_ago
  FROM schedulers ORDER BY seen_at DESC
""")


def see(connection: Connection, name: str, host: str, pid: int, version: str) -> None:
    """Say that this process is there; those that were not seen for a day are forgotten."""
    parameters = {"name": name, "host": host, "pid": pid, "version": version}
    connection.execute(_SEE, {**parameters, "forgotten_seconds": FORGOTTEN_SECONDS})


def forget(connection: Connection, name: str) -> None:
    """Say that this process ends."""
    connection.execute(_FORGET, {"name": name})


def everyone(connection: Connection) -> list[SchedulerRow]:
    """All that were seen within a day, the last seen first."""
    return [SchedulerRow(**row._mapping) for row in connection.execute(_ALL)]
