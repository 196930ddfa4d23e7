"""Whether a worker was told to stop.

On SIGTERM, RQ's worker writes the time into its hash in Redis, and waits for its work-horse; so the lease keeper reads
that hash. A signal to the whole process group reaches the work-horse itself, where RQ has set the default action.
"""

import math
import signal
import time
from datetime import UTC, datetime
from types import FrameType
from typing import Final

import redis

from jobledger.observe.log import get_logger
from jobledger.queues.keys import MOMENT_FORMAT, WORKER_PREFIX

log: Final = get_logger(__name__)

REQUESTED_FIELD: Final = "shutdown_requested_date"  # rq 3.0 worker/base.py:1045
NO_WORKER: Final = "none"
"""The worker's name for a run without a worker."""


class StopSignal:
    """A work-horse's handling of SIGTERM.

    Attributes:
        requested_at: when it came, on the monotonic clock; infinite until then.
    """

    def __init__(self) -> None:
        self.requested_at = math.inf

    def listen(self) -> None:
        """Take the first SIGTERM as a request; only the second one ends the process.

        Also after the run: RQ's bookkeeping of a job that has ended must not be cut either.
        """
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.requested_at = min(self.requested_at, time.monotonic())


def stop_requested_at(client: redis.Redis, worker: str) -> float | None:
    """When a worker was told to stop, by its hash in Redis, on this host's monotonic clock; None if it was not.

    Raises:
        redis.RedisError: Redis is away: whether it was told is unknown.
    """
    if worker == NO_WORKER:
        return None
    said = client.hget(f"{WORKER_PREFIX}{worker}", REQUESTED_FIELD)
    age = _age_seconds(said)  # type: ignore[arg-type]
    return time.monotonic() - age if age is not None else None


def _age_seconds(said: bytes | None) -> float | None:
    """The age of a time that RQ's worker on this host has written."""
    if said is None:
        return None
    try:
        moment = datetime.strptime(said.decode("utf-8", "replace"), MOMENT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return 0.0  # a request all the same
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
