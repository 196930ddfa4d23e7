"""Runs a job that does not exist, in a worker's parent process, so that its work-horses inherit warm code.

CPython 3.11 and newer rewrite a function's bytecode in its first calls. In a work-horse, which lives for one job, every
such write copies a page of the parent's memory for nothing; after a rewrite before the fork, all of them share it.
"""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg2

from jobledger.connections.default import Connections
from jobledger.domain.records import Claim
from jobledger.errors import LedgerUnavailable
from jobledger.failpoints import disarmed
from jobledger.observe.log import get_logger, muted
from jobledger.worker.keeping import keeping_of
from jobledger.worker.work_horse import Delivery

log: Final = get_logger(__name__)

WARM_UPS: Final = 20
NO_JOB: Final = UUID(int=0)


def warm_up(connections: Connections, job_type: str, payload: dict[str, Any]) -> None:
    """Run a job of this type some times, for a row that does not exist: nothing is claimed or completed.

    Args:
        connections: of the parent; the connections that this makes are closed.
        job_type: of a job that does nothing.
        payload: of that job.

    A worker that cannot warm up, because Postgres is away or not migrated yet, is slower, and nothing else.
    """
    now = datetime.now(UTC)
    claim = Claim(NO_JOB, 0, job_type, "default", payload, 60.0, 1, 0, 0, 0, now, None)
    try:
        with muted(), disarmed():
            for _ in range(WARM_UPS):
                Delivery(connections, keeping_of(connections), NO_JOB, isolated=False).warm_up(claim)
    except (LedgerUnavailable, psycopg2.Error) as error:
        log.warning("Not warmed up", error=str(error).strip())
    finally:
        connections.close()
