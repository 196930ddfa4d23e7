"""Deletes jobs that ended long ago, in small batches."""

from typing import Final

from jobledger.connections import Connections
from jobledger.ledger.prune import prune_finished

BATCH: Final = 1000
DAY_SECONDS: Final = 86400.0
DEADLINE_SECONDS: Final = 30.0


def prune(connections: Connections) -> int:
    """Delete ended jobs over the age in the settings, with their attempts; ticks of schedules stay.

    Returns:
        How many jobs were deleted.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    settings = connections.settings
    total = 0
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            deleted = prune_finished(
                connection,
                settings.keep_completed_days * DAY_SECONDS,
                settings.keep_failed_days * DAY_SECONDS,
                BATCH,
            )
        total += deleted
        if deleted < BATCH:
            return total
