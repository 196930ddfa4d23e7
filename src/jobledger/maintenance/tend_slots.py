"""Gives free slots of limits and rates to those that wait, and sets right what is counted.

Of a rate, slots become free by themselves, as time passes. Of a limit, whoever ends a job passes its slot on; if that
process died before it could, this does.
"""

from typing import Final

from jobledger import slots
from jobledger.connections import Connections
from jobledger.ledger import slot_counts
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

BATCH: Final = 500
DEADLINE_SECONDS: Final = 15.0


def tend_slots(connections: Connections) -> int:
    """Take slots from those that may not have one, recount what does not fit, release who waits for no reason.

    Returns:
        How many jobs were released, and how many counts were wrong.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        strays = slot_counts.strays(connection, BATCH)
    done = slots.pass_on(connections, strays) if strays else 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        slot_counts.forget(connection, BATCH, only_slots=True)
        miscounted = slot_counts.miscounted(connection, BATCH)
    for kind, key in miscounted:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            wrong = slot_counts.recount(connection, kind, key)
        if wrong:
            log.warning("Slots were miscounted", kind=kind, key=key)
        done += wrong
    with connections.transaction(DEADLINE_SECONDS) as connection:
        free = slot_counts.free(connection)
    return done + sum(slots.release(connections, key) for key in free)
