"""Deletes rows that are older than the settings keep them, in small batches."""

from collections.abc import Callable
from typing import Final

from sqlalchemy.engine import Connection

from jobledger.connections.default import Connections
from jobledger.ledger import limit_counts
from jobledger.ledger.prune import (
    prune_cancel_requests,
    prune_finished,
    prune_idempotency_keys,
    prune_limit_keys,
    prune_lost_wakes,
    prune_ticks,
    prune_unique_windows,
)

BATCH: Final = 1000
HOUR_SECONDS: Final = 3600.0
DAY_SECONDS: Final = 86400.0
REQUESTS_SECONDS: Final = DAY_SECONDS
"""A request is of no use once its job has ended; the job's row has the reason."""

LOSSES_SECONDS: Final = 7 * DAY_SECONDS
"""A wake-up that was lost longer ago says nothing about the next one."""

KEYS_SECONDS: Final = DAY_SECONDS
"""Keys of limits and rates are inserted again when they are used."""

DEADLINE_SECONDS: Final = 30.0


def prune(connections: Connections) -> int:
    """Delete old jobs with their attempts, ticks, lost wake-ups, cancel requests, idempotency keys, unique windows and
    keys of limits.

    Returns:
        The number of rows deleted.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    settings = connections.settings
    completed, failed = settings.keep_completed_days * DAY_SECONDS, settings.keep_failed_days * DAY_SECONDS
    jobs = _in_batches(connections, lambda connection: prune_finished(connection, completed, failed, BATCH))
    kept = settings.keep_ticks_days * DAY_SECONDS
    jobs += _in_batches(connections, lambda connection: prune_lost_wakes(connection, LOSSES_SECONDS, BATCH))
    jobs += _in_batches(connections, lambda connection: prune_unique_windows(connection, BATCH))
    jobs += _in_batches(connections, lambda connection: prune_cancel_requests(connection, REQUESTS_SECONDS, BATCH))
    jobs += _in_batches(connections, lambda connection: prune_limit_keys(connection, KEYS_SECONDS, BATCH))
    jobs += _in_batches(connections, lambda connection: limit_counts.forget(connection, BATCH, only_slots=False))
    keys_kept = settings.keep_idempotency_keys_hours * HOUR_SECONDS
    jobs += _in_batches(connections, lambda connection: prune_idempotency_keys(connection, keys_kept, BATCH))
    return jobs + _in_batches(connections, lambda connection: prune_ticks(connection, kept, BATCH))


def _in_batches(connections: Connections, delete: Callable[[Connection], int]) -> int:
    total = 0
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            deleted = delete(connection)
        total += deleted
        if deleted < BATCH:
            return total
