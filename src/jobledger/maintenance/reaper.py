"""Finds started jobs that nobody runs any more, and ends their attempts (R5, and R6 where RQ has seen the death).

Two kinds of evidence. RQ's worker saw its work-horse die and said so, and the attempt's Postgres session is gone:
reaped at once. Or the lease is stale, while somebody has been sweeping and Postgres has been up for all of a lease,
so that the job could have renewed it: reaped as lost. An outage of our own thus reaps nobody.
"""

import os
import socket
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import redis

from jobledger import finish, queues
from jobledger.connections import Connections
from jobledger.dispatch import push_quietly
from jobledger.ledger import leases
from jobledger.ledger.leases import Suspect
from jobledger.ledger.transitions import Evidence
from jobledger.observe.log import get_logger
from jobledger.queues import Death
from jobledger.status import Outcome

log: Final = get_logger(__name__)

SWEEP_NAME: Final = "reap"
GAP_SECONDS: Final = 15.0
"""After a longer gap between any two sweeps, leases may have gone stale because Postgres was away."""

BATCH: Final = 500
DEADLINE_SECONDS: Final = 15.0


def reap(connections: Connections) -> int:
    """End the attempts of vanished runs; their jobs run again or fail, as their budgets say.

    Returns:
        How many attempts were ended.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    lease_seconds = connections.settings.lease_seconds
    with connections.transaction(DEADLINE_SECONDS) as connection:
        settled = leases.record_sweep(connection, SWEEP_NAME, _whoami(), GAP_SECONDS, lease_seconds)
        suspects = leases.suspects(connection, BATCH)
    deaths = _deaths(connections, suspects)
    reaped = 0
    for suspect in suspects:
        death = deaths.get(suspect.id)
        if death is not None and death.worker == suspect.worker and suspect.session_gone:
            outcome = Outcome.CRASHED if death.process_died else Outcome.LOST
            reaped += _end(connections, suspect, outcome, death.report)
        elif suspect.lease_stale and settled:
            reaped += _end(connections, suspect, Outcome.LOST, "Worker, host or connection gone: the lease ran out.")
    return reaped


def _deaths(connections: Connections, suspects: list[Suspect]) -> Mapping[UUID, Death]:
    """What RQ reports of the suspects; nothing if Redis is away: stale leases are reaped all the same."""
    if not suspects:
        return {}
    try:
        return queues.reported_deaths(connections.redis, [suspect.id for suspect in suspects])
    except redis.RedisError as error:
        log.warning("Redis is away: reaping by leases alone", error=str(error))
        return {}


def _end(connections: Connections, suspect: Suspect, outcome: Outcome, why: str) -> int:
    decision = finish.decide(outcome, suspect)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        leases.end_backend(connection, suspect.backend_pid, suspect.backend_started_at)
        settled = finish.settle(connection, suspect.id, suspect.attempt, outcome, decision, Evidence(error_message=why))
    if settled is None:
        return 0
    log.warning(
        "Reaped", job_id=str(suspect.id), attempt=suspect.attempt, outcome=outcome.value, status=settled.status.value
    )
    push_quietly(connections, settled.wakes)
    return 1


def _whoami() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
