"""Counts of what has not ended, and what Postgres says of itself."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class Unfinished:
    """How many jobs stand where; `running` under a lease, `unattended` under one that has run out."""

    queued: int
    held: int
    scheduled: int
    deferred: int
    running: int
    unattended: int


# Each along an index of the status.
_UNFINISHED: Final = sa.text("""
SELECT (SELECT count(*) FROM job_statuses WHERE status = 'queued' AND held_by IS NULL) AS queued,
       (SELECT count(*) FROM job_statuses WHERE status = 'queued' AND held_by IS NOT NULL) AS held,
       (SELECT count(*) FROM job_statuses WHERE status = 'scheduled') AS scheduled,
       (SELECT count(*) FROM job_statuses WHERE status = 'deferred') AS deferred, started.*
  FROM (SELECT count(*) FILTER (WHERE a.lease_expires_at >= now() AND a.outcome IS NULL) AS running,
               count(*) FILTER (WHERE (a.lease_expires_at >= now() AND a.outcome IS NULL) IS NOT TRUE) AS unattended
          FROM job_statuses j LEFT JOIN job_attempts a ON a.job_id = j.id AND a.number = j.attempt
         WHERE j.status = 'started') AS started
""")


def unfinished(connection: Connection) -> Unfinished:
    """Count them, at one moment."""
    return Unfinished(**connection.execute(_UNFINISHED).one()._mapping)


_WAITING: Final = sa.text("""
SELECT count(*) FROM (SELECT FROM job_statuses WHERE status = 'queued' AND held_by IS NULL AND queue = :queue
                      LIMIT :limit) AS counted
""")


def queued_in(connection: Connection, queue: str, limit: int) -> int:
    """How many jobs of a queue may run now; counted up to a limit."""
    return int(connection.execute(_WAITING, {"queue": queue, "limit": limit}).scalar_one())


# Along ix_job_statuses_unpushed, in the order of the relay.
_OVERDUE_UNPUSHED: Final = sa.text("""
SELECT id FROM job_statuses
 WHERE status = 'queued' AND held_by IS NULL AND pushed_at IS NULL AND queue = :queue
   AND queued_at < now() - make_interval(secs => :age_seconds)
 ORDER BY priority, queued_at, id LIMIT :limit
""")


def overdue_unpushed(connection: Connection, queue: str, age_seconds: float, limit: int) -> list[UUID]:
    """Jobs of a queue that may have run for longer than this and are in no list; those first that the relay pushes
    next."""
    parameters = {"queue": queue, "age_seconds": age_seconds, "limit": limit}
    return list(connection.execute(_OVERDUE_UNPUSHED, parameters).scalars())


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """What matters to whoever operates it.

    Attributes:
        version: such as 140011.
        fsync, synchronous_commit: "on" or "off", and the like.
        epoch_seconds: its clock.
    """

    version: int
    fsync: str
    synchronous_commit: str
    epoch_seconds: float


_FACTS: Final = sa.text("""
SELECT CAST(current_setting('server_version_num') AS int) AS version, current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       CAST(extract(epoch FROM clock_timestamp()) AS float8) AS epoch_seconds
""")


def facts(connection: Connection) -> PostgresFacts:
    """Ask Postgres."""
    return PostgresFacts(**connection.execute(_FACTS).one()._mapping)
