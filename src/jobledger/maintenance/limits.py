"""Gives free slots of limits and rates to those that wait, and sets right what is counted.

Of a rate, slots become free by themselves, as time passes. Of a limit, whoever ends a job passes its slot on; if that
process died before it could, this does.
"""

import random
import threading
import time
from typing import Final

from jobledger.connections.default import Connections
from jobledger.domain.status import SlotKind
from jobledger.ledger import limit_counts
from jobledger.lifecycle import limits
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

BATCH: Final = 500
DEADLINE_SECONDS: Final = 15.0

DEEP: Final = 10_000
"""How far down a line to look for somebody who could start, behind those that wait for something else."""

LONGEST_RELEASING_SECONDS: Final = 3.0
"""For rates, and for limits; then comes the next look, and who is left waits for that."""

SHORTEST_REST_SECONDS: Final = 0.02
REST_FOR_WORK: Final = 4
"""So many times as long as a look for free keys has taken is the shortest rest after it."""


def maintain_limits(
    connections: Connections, stay_seconds: float = 0.0, stopping: threading.Event | None = None
) -> int:
    """Take slots from those that may not have one, recount what does not fit, release who waits for no reason.

    Args:
        connections: the servers.
        stay_seconds: wait so long for what rates allow soon, and release it at its moment.
        stopping: ends the stay.

    Returns:
        How many jobs were released, and how many counts were wrong.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    until = time.monotonic() + stay_seconds
    stopping = stopping or threading.Event()
    done = _set_right(connections)
    while True:
        looked_at = time.monotonic()
        with connections.transaction(DEADLINE_SECONDS) as connection:
            lines = limit_counts.lines(connection)
        took = time.monotonic() - looked_at
        free = [one.key for one in lines if one.wait_seconds == 0]
        released = 0
        for kind in SlotKind.RATE, SlotKind.LIMIT:  # who waits for both stands in line for the limit when that is given
            keys = [key for key in free if key.startswith(f"{kind}:")]
            released += _release(connections, keys, stopping)
        done += released
        waits = [one.wait_seconds for one in lines if one.wait_seconds]
        if released:
            waits.append(0.0)  # of what is left there, this look did not say when it may go
        soonest = min(waits, default=float("inf"))
        rest = max(looked_at + soonest - time.monotonic(), REST_FOR_WORK * took, SHORTEST_REST_SECONDS)
        lasted = time.monotonic() - looked_at  # the next one must not take the time of the next pass
        if time.monotonic() + rest + lasted > until or stopping.wait(rest):
            return done


def _set_right(connections: Connections) -> int:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        strays = limit_counts.leaked(connection, BATCH)
    done = limits.pass_on(connections, strays) if strays else 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        limit_counts.forget(connection, BATCH, only_slots=True)
        miscounted = limit_counts.miscounted(connection, BATCH)
    for kind, key in miscounted:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            wrong = limit_counts.recount(connection, kind, key)
        if wrong:
            log.warning("Slots were miscounted", kind=kind, key=key)
        done += wrong
    return done


def _release(connections: Connections, keys: list[str], stopping: threading.Event) -> int:
    """Keys take turns for as long as there is somebody to be released, and time; how many were."""
    until = time.monotonic() + LONGEST_RELEASING_SECONDS
    released = 0
    random.shuffle(keys)  # if time is too short for all of them, it shall not be so for the same ones each time
    while keys:
        again = []
        for key in keys:
            if time.monotonic() > until or stopping.is_set():
                return released
            if count := limits.release(connections, key, depth=DEEP):
                released += count
                again.append(key)
        keys = again
    return released
