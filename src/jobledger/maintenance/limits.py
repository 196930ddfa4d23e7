"""Gives free slots of limits and rates to held jobs, and corrects wrong counts.

Slots of a rate become free as time passes. Slots of a limit are passed on by the process that ends a job; if it died
before it could, this chore does it.
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
"""How far down a line to look for a job that could start, behind jobs that wait for another key."""

LONGEST_RELEASING_SECONDS: Final = 3.0
"""For rates, and for limits; the next look releases the rest."""

SHORTEST_REST_SECONDS: Final = 0.02
REST_FOR_WORK: Final = 4
"""The shortest rest after a look for free keys, as a multiple of the time that the look took."""


def maintain_limits(
    connections: Connections, stay_seconds: float = 0.0, stopping: threading.Event | None = None
) -> int:
    """Pass leaked slots on, correct wrong counts, and release held jobs that have free slots.

    Args:
        connections: the servers.
        stay_seconds: wait so long for slots of rates, and give each as soon as it is free.
        stopping: ends the stay.

    Returns:
        The number of jobs released, plus the number of wrong counts.

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
        for kind in SlotKind.RATE, SlotKind.LIMIT:  # a job that waits for both is then in the limit's line
            keys = [key for key in free if key.startswith(f"{kind}:")]
            released += _release(connections, keys, stopping)
        done += released
        waits = [one.wait_seconds for one in lines if one.wait_seconds]
        if released:
            waits.append(0.0)  # this look does not know when the next job of those keys may start
        soonest = min(waits, default=float("inf"))
        rest = max(looked_at + soonest - time.monotonic(), REST_FOR_WORK * took, SHORTEST_REST_SECONDS)
        lasted = time.monotonic() - looked_at  # the next look must not delay the next pass
        if time.monotonic() + rest + lasted > until or stopping.wait(rest):
            return done


def _set_right(connections: Connections) -> int:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        leaked = limit_counts.leaked(connection, BATCH)
    done = limits.pass_on(connections, leaked) if leaked else 0
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
    """Release jobs of the keys in turns, while there are some, and time; count them."""
    until = time.monotonic() + LONGEST_RELEASING_SECONDS
    released = 0
    random.shuffle(keys)  # if time is too short for all keys, others are left out each time
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
