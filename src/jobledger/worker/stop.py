"""Whether the worker of a run was asked to stop, and when the time that this leaves to the job is up.

RQ's worker answers SIGTERM by writing the moment into its hash in Redis, and waits for its work-horse; so the lease's
thread looks there. A signal to the whole process group reaches the work-horse itself, which RQ leaves to die of it.
"""

import math
import signal
import time
from datetime import UTC, datetime
from types import FrameType
from typing import Final

import redis

from jobledger.connections.redis import make_redis
from jobledger.observe.log import get_logger
from jobledger.settings import Settings

log: Final = get_logger(__name__)

WORKER_KEY: Final = "rq:worker:{}"  # rq 3.0 worker/base.py:118
REQUESTED_FIELD: Final = "shutdown_requested_date"  # rq 3.0 worker/base.py:1045
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"  # rq 3.0 utils.py, utcformat
ANSWER_SECONDS: Final = 0.5
NO_WORKER: Final = "none"
"""The worker's name of a run without one."""


class StopRequest:
    """What one run knows of a stop of its worker.

    Args:
        settings: where Redis is, and how long a job may go on.
        worker: RQ's name of the worker.
    """

    def __init__(self, settings: Settings, worker: str) -> None:
        self._settings = settings
        self._worker = worker
        self._client: redis.Redis | None = None
        self._requested_at = math.inf

    @property
    def is_requested(self) -> bool:
        """Whether the worker is known to stop."""
        return self._requested_at < math.inf

    @property
    def deadline(self) -> float:
        """Until when the job may go on, on the monotonic clock; infinite while nobody has asked."""
        return self._requested_at + self._settings.drain_seconds

    def listen(self) -> None:
        """In a work-horse: the first SIGTERM is a request, and only the second one ends the process.

        It stays so after the run: RQ's bookkeeping of a job that has ended is not to be cut either.
        """
        signal.signal(signal.SIGTERM, self._note)

    def look(self) -> None:
        """In the lease's thread: ask Redis. No answer is no sign of anything."""
        if self.is_requested or self._worker == NO_WORKER:
            return
        try:
            if self._client is None:
                self._client = make_redis(self._settings.require_redis_url(), ANSWER_SECONDS)
            said = self._client.hget(WORKER_KEY.format(self._worker), REQUESTED_FIELD)
        except redis.RedisError as error:
            log.debug("Cannot see whether the worker stops", error=str(error))
            return
        age = _age_seconds(said)  # type: ignore[arg-type]
        if age is not None:
            self._requested_at = time.monotonic() - age

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._requested_at = min(self._requested_at, time.monotonic())


def _age_seconds(said: bytes | None) -> float | None:
    """How old a moment of RQ's is; by the clock of this host, as it was written."""
    if said is None:
        return None
    try:
        moment = datetime.strptime(said.decode("utf-8", "replace"), TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return 0.0  # a request all the same
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
