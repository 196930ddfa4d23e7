"""Counts where all jobs are, about once a minute, for `/health` and whoever asks Postgres.

With 50,000 wake-ups in Redis, and as many jobs that wait for room there, it takes less than a second of one core.
"""

from dataclasses import asdict
from typing import Final

from jobledger.connections import Connections
from jobledger.ledger import sweeps
from jobledger.observe import conservation
from jobledger.observe.log import get_logger
from jobledger.process import this_process

log: Final = get_logger(__name__)

COUNT_SECONDS: Final = 60.0
DEADLINE_SECONDS: Final = 15.0


def count_places(connections: Connections) -> None:
    """Count all places and write down what was found, unless somebody has done so within the last minute or nearly.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing is written.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        last = sweeps.last_count(connection)
    if last is not None and last.age_seconds < COUNT_SECONDS * 3 / 4:
        return
    counted = conservation.count(connections)
    found = {**asdict(counted), "drift": counted.drift}
    with connections.transaction(DEADLINE_SECONDS) as connection:
        sweeps.note_count(connection, this_process(), found)
    if counted.drift:
        log.info("Jobs were out of place", **{name: value for name, value in found.items() if value})
