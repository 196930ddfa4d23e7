"""Checks whether the clock of the database was set back, logs it, and corrects times that measure elapsed time."""

from typing import Final

from jobledger.connections.default import Connections
from jobledger.ledger import clock, stats
from jobledger.observe.log import get_logger
from jobledger.process import this_process

log: Final = get_logger(__name__)

BATCH: Final = 5000
MOST_BATCHES: Final = 20
"""Batches of a pass, for each queue; the next pass moves the rest."""

DEADLINE_SECONDS: Final = 15.0


def look_at_clock(connections: Connections) -> int:
    """Check the clock, and move times that lie in the future.

    Returns:
        The number of waiting and pushed jobs whose times were moved.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        seconds = clock.look(connection, this_process())
        known = clock.set_back(connection)
        names = stats.queues_with_work(connection) if known is not None else []
    if seconds and known is not None:
        log.error(
            "The clock of Postgres was set back", by_seconds=round(seconds), left_seconds=round(known.left_seconds)
        )
    if known is None:
        return 0
    moved = 0
    for name in (None, *names):
        for _ in range(MOST_BATCHES):
            with connections.transaction(DEADLINE_SECONDS) as connection:
                some = (
                    clock.move_waiting(connection, known.by_seconds, BATCH)
                    if name is None
                    else clock.move_pushed(connection, name, known.by_seconds, BATCH)
                )
            moved += some
            if some < BATCH:
                break
    return moved
