"""Counts of jobs by status, queue and type; facts about the Postgres server."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.status import JobStatus, PauseKind


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Counts of unfinished jobs; `running` under a lease, `unattended` under a stale one."""

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
    """Count the unfinished jobs, at one moment."""
    return Unfinished(**connection.execute(_UNFINISHED).one()._mapping)


_WAITING: Final = sa.text("""
SELECT count(*) FROM (SELECT FROM job_statuses WHERE status = 'queued' AND held_by IS NULL AND queue = :queue
                      LIMIT :limit) AS counted
""")


def queued_in(connection: Connection, queue: str, limit: int) -> int:
    """The number of jobs of a queue that may run now, counted up to a limit."""
    return int(connection.execute(_WAITING, {"queue": queue, "limit": limit}).scalar_one())


# Along ix_job_statuses_unpushed, in the order of the relay.
_OVERDUE_UNPUSHED: Final = sa.text("""
SELECT id FROM job_statuses
 WHERE status = 'queued' AND held_by IS NULL AND pushed_at IS NULL AND queue = :queue
   AND queued_at < now() - make_interval(secs => :age_seconds)
 ORDER BY priority, queued_at, id LIMIT :limit
""")


def overdue_unpushed(connection: Connection, queue: str, age_seconds: float, limit: int) -> list[UUID]:
    """Jobs of a queue that have been ready for longer than this and were not pushed, in the order of the relay."""
    parameters = {"queue": queue, "age_seconds": age_seconds, "limit": limit}
    return list(connection.execute(_OVERDUE_UNPUSHED, parameters).scalars())


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """Facts about the server that matter to its operator.

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


_NOW: Final = sa.text("SELECT clock_timestamp()")


def now(connection: Connection) -> datetime:
    """The clock of the database."""
    moment: datetime = connection.execute(_NOW).scalar_one()
    return moment


# One step along an index from each queue to the next, however many rows each has.
_QUEUES: Final = """
WITH RECURSIVE names AS (
    (SELECT queue FROM job_statuses WHERE {0} ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT j.queue FROM job_statuses j WHERE {0} AND j.queue > names.queue ORDER BY j.queue LIMIT 1)
      FROM names WHERE names.queue IS NOT NULL
)
SELECT queue FROM names WHERE queue IS NOT NULL
"""
_WITH_WORK: Final = sa.text(_QUEUES.format("status = 'queued' AND held_by IS NULL"))
_WITH_UNPUSHED: Final = sa.text(_QUEUES.format("status = 'queued' AND held_by IS NULL AND pushed_at IS NULL"))


def queues_with_work(connection: Connection) -> list[str]:
    """Names of the queues that hold a job that may run now."""
    return sorted(connection.execute(_WITH_WORK).scalars())


def queues_with_unpushed(connection: Connection) -> list[str]:
    """Names of the queues that hold a job that may run and is not in Redis."""
    return sorted(connection.execute(_WITH_UNPUSHED).scalars())


_COUNTS: Final = sa.text("SELECT status, count(*) AS jobs FROM job_statuses GROUP BY status")


def counts_by_status(connection: Connection) -> dict[JobStatus, int]:
    """The number of jobs in each status, also where it is 0."""
    found = {JobStatus(row.status): row.jobs for row in connection.execute(_COUNTS)}
    return {status: found.get(status, 0) for status in JobStatus}


@dataclass(frozen=True, slots=True)
class Load:
    """The unfinished jobs of a queue or of a type.

    Attributes:
        queued: may run now.
        held: waits for a pause or a limit.
        oldest_queued_at: since when the oldest job that may run has waited.
    """

    kind: PauseKind
    name: str
    queued: int
    held: int
    scheduled: int
    running: int
    oldest_queued_at: datetime | None


# Unfinished jobs are few beside ended ones: the index of statuses finds them.
_LOADS: Final = """
SELECT n.name, count(*) FILTER (WHERE j.status = 'queued' AND j.held_by IS NULL) AS queued,
       count(*) FILTER (WHERE j.held_by IS NOT NULL) AS held,
       count(*) FILTER (WHERE j.status = 'scheduled') AS scheduled,
       count(*) FILTER (WHERE j.status = 'started') AS running,
       min(j.queued_at) FILTER (WHERE j.status = 'queued' AND j.held_by IS NULL) AS oldest_queued_at
  FROM (SELECT unnest(CAST(:names AS text[])) AS name {also}) AS n
  LEFT JOIN job_statuses j ON j.{column} = n.name AND j.status IN ('queued', 'scheduled', 'started')
 GROUP BY n.name ORDER BY n.name
"""
_ALSO_BUSY: Final = "UNION SELECT queue FROM job_statuses WHERE status IN ('queued', 'scheduled', 'started')"
_LOADS_OF_QUEUES: Final = sa.text(_LOADS.format(column="queue", also=_ALSO_BUSY))
_LOADS_OF_TYPES: Final = sa.text(_LOADS.format(column="job_type", also=""))


def loads_of_queues(connection: Connection, names: Sequence[str]) -> list[Load]:
    """The unfinished jobs of these queues, and of every other queue that has some."""
    rows = connection.execute(_LOADS_OF_QUEUES, {"names": list(names)})
    return [Load(kind=PauseKind.QUEUE, **row._mapping) for row in rows]


def loads_of_types(connection: Connection, names: Sequence[str]) -> list[Load]:
    """The unfinished jobs of these types."""
    rows = connection.execute(_LOADS_OF_TYPES, {"names": sorted(set(names))})
    return [Load(kind=PauseKind.TYPE, **row._mapping) for row in rows]
