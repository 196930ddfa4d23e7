"""The window: how many wake-ups of a queue may be in Redis. The other queued jobs wait in Postgres.

The order of jobs: the relay pushes by priority and age, and workers take wake-ups in the order of the pushes. A
dispatch is pushed at once only while its queue keeps up. Once a process has seen a full list, its dispatches wait in
Postgres, behind older jobs, until the list is half empty: the relay fills it up every second, so no older job waits
then. A list that a process sees for the first time counts as full if it is half full. So new jobs may overtake older
ones by half a window when workers are quicker than the relay, and after Redis was emptied; and priorities order the
jobs that wait in Postgres, not the wake-ups in a list.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import redis

from jobledger.connections.default import Connections
from jobledger.queues.wakes import length

LOOK_SECONDS: Final = 1.0
"""The length of a list is asked for again after this; in between, a process counts its own pushes."""


@dataclass(slots=True)
class _Seen:
    """The knowledge of one process about one list."""

    length: int
    keeps_up: bool
    look_again_at: float


class Window:
    """The pushes that one process may do. Safe for threads.

    Args:
        size: wake-ups of one queue that may be in Redis, about.
        clock: seconds that only go forward.
        prefix: of the queues' names in Redis.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic, prefix: str = "") -> None:
        self._size = size
        self._prefix = prefix
        self._clock = clock
        self._lock = threading.Lock()
        self._lists: dict[str, _Seen] = {}
        self._closed_until = 0.0

    def grant(self, client: redis.Redis, queue: str, wanted: int) -> int:
        """The number of wake-ups, of those wanted, that may be pushed to a queue now; they count as pushed.

        Returns:
            0 without asking, if Redis did not answer within the last second.

        Raises:
            redis.RedisError: Redis does not answer; for a second no other call waits for it.
        """
        with self._lock:
            now = self._clock()
            if now < self._closed_until:
                return 0
            seen = self._lists.get(queue)
            if seen is None or now >= seen.look_again_at:
                seen = self._lists[queue] = self._look(client, queue, seen, now)
            granted = min(wanted, self._size - seen.length) if seen.keeps_up else 0
            if granted < wanted:
                seen.keeps_up = False
            granted = max(granted, 0)
            seen.length += granted
            return granted

    def close(self) -> None:
        """Redis did not take a push: let no call wait for it for a second."""
        with self._lock:
            self._closed_until = self._clock() + LOOK_SECONDS

    def _look(self, client: redis.Redis, queue: str, seen: _Seen | None, now: float) -> _Seen:
        try:
            listed = length(client, f"{self._prefix}{queue}")
        except redis.RedisError:
            self._closed_until = self._clock() + LOOK_SECONDS
            raise
        emptied = 2 * listed < self._size
        keeps_up = emptied or (seen is not None and seen.keeps_up and listed < self._size)
        return _Seen(listed, keeps_up, now + LOOK_SECONDS)


class _Process:
    """The state of a process: a window for each of its connections."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.windows: WeakKeyDictionary[Connections, Window] = WeakKeyDictionary()

    def begin_anew(self) -> None:
        """In a forked child: another thread of its parent may have had a lock."""
        self.__init__()  # type: ignore[misc]


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.begin_anew)


def window_of(connections: Connections) -> Window:
    """The window of these connections in this process."""
    with _process.lock:
        window = _process.windows.get(connections)
        if window is None:
            window = _process.windows[connections] = Window(
                connections.settings.queue_window, prefix=connections.settings.queue_prefix
            )
        return window
