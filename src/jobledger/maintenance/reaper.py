"""Finds started jobs without a process, and ends their attempts, also where RQ has seen the death.

Two kinds of evidence. RQ calls the job failed, and the last to say so is the worker that runs the attempt: reaped at
once. A worker sets RQ's status to started before an attempt of its own claims the row, and runs one job at a time, so
what it says of failure while the row is started is about this attempt; unless it is older than the attempt, as in a
Redis that came back with an old snapshot. Or the lease is stale, while sweeps had no gap, Postgres was up and the table
of attempts could be written for all of a lease, so that the lease could have been renewed: reaped as lost. An outage of
our own thus reaps no attempt.

Besides, it ends attempts that were to be canceled and have not ended themselves: their process is frozen, or sits in C
and lets no other thread run. That needs no evidence: the fence keeps what is left of them from writing anything.
"""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

import redis

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.connections.locks import LockTimeout, transaction_waiting_for_locks
from jobledger.domain.records import Evidence
from jobledger.domain.status import Outcome
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import heartbeats, leases
from jobledger.ledger.leases import Running
from jobledger.lifecycle import finish
from jobledger.lifecycle.takeover import take_over
from jobledger.maintenance.one_by_one import OneByOne
from jobledger.observe.log import get_logger
from jobledger.process import this_process
from jobledger.queues import Death

log: Final = get_logger(__name__)

CANCEL_SECONDS: Final = 9.0
"""By then a process that can end its job has done so; with a sweep in five seconds it is over within 15."""

DID_NOT_END: Final = "It did not end itself when it was canceled."
LEASE_RAN_OUT: Final = "Worker, host or connection gone: the lease ran out."
BATCH: Final = 10_000
DEADLINE_SECONDS: Final = 15.0
PROOF_SECONDS: Final = 1.0


def reap(connections: Connections, *, is_sweep: bool = True) -> int:
    """End the attempts of vanished runs; their jobs run again or fail, as their budgets say.

    One that cannot be ended now, because another transaction holds its row, is left for the next sweep; the others are
    ended.

    Args:
        connections: the servers.
        is_sweep: whether the caller does it again and again, and is recorded as a process that repairs.

    Returns:
        How many attempts were ended.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    if not _is_writable(connections):
        return 0
    lease_seconds = connections.settings.lease_seconds
    with connections.transaction(DEADLINE_SECONDS) as connection:
        gap_seconds = heartbeats.longest_gap_seconds(connections.settings.sweep_seconds)
        by = this_process() if is_sweep else None
        settled = heartbeats.record(connection, heartbeats.REAP, by, gap_seconds, lease_seconds)
        running = leases.running(connection, CANCEL_SECONDS, BATCH)
    deaths = _deaths(connections, running)
    each = OneByOne(connections, DEADLINE_SECONDS, sweep=heartbeats.REAP if is_sweep else None)
    reaped = 0
    for one in running:
        death = deaths.get(one.id)
        if death is not None and death.is_about(one.worker, one.age_seconds):
            outcome = Outcome.CRASHED if death.process_died and one.isolated else Outcome.LOST
            reaped += _end(connections, each, one, outcome, death.report, surely=True)
        elif one.cancel_overdue:
            reaped += _end(connections, each, one, Outcome.CANCELED, DID_NOT_END, surely=True)
        elif one.lease_stale and settled:
            reaped += _end(connections, each, one, Outcome.LOST, LEASE_RAN_OUT, surely=False)
    each.end()
    return reaped


def _deaths(connections: Connections, running: list[Running]) -> Mapping[UUID, Death]:
    """What RQ reports of the running jobs; nothing if Redis is away: stale leases are reaped all the same."""
    if not running:
        return {}
    try:
        return queues.reported_deaths(connections.maintenance_redis, [one.id for one in running])
    except redis.RedisError as error:
        log.warning("Redis is away: reaping by leases alone", error=str(error))
        return {}


def _is_writable(connections: Connections) -> bool:
    """Whether leases could be renewed at this moment; if not, they begin anew to prove something when they can."""
    try:
        with transaction_waiting_for_locks(connections, DEADLINE_SECONDS, PROOF_SECONDS) as connection:
            leases.prove_writable(connection)
    except LockTimeout as error:
        log.warning("No lease is judged: the table of attempts is locked", error=str(error))
        with connections.transaction(DEADLINE_SECONDS) as connection:
            heartbeats.begin_anew(connection, heartbeats.REAP)
        return False
    return True


def _end(connections: Connections, each: OneByOne, one: Running, outcome: Outcome, why: str, *, surely: bool) -> int:
    """End an attempt. If its process is still there, the keeper of its lease sees the fence, and gets rid of it."""
    reach(Failpoint.REAPER_DECIDED)
    evidence = Evidence(error_message=why)
    settled = each.do(one.id, lambda connection: take_over(connection, one, outcome, evidence, surely=surely))
    if settled is not None:
        words = {"outcome": outcome.value, "status": settled.status.value}
        log.warning("Reaped", job_id=str(one.id), attempt=one.attempt, **words)
    finish.announce(connections, settled, freed=[one.id])
    return int(settled is not None)
