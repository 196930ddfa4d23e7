"""Interrupts a running job: when its time is up, it was fenced out, it is canceled, or its worker stops.

They come again every second for as long as the job runs on.
"""

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final, Self

from jobledger.domain.endings import Interrupt, JobTimeout

REPEAT_SECONDS: Final = 1.0


class Alarm:
    """Raises `JobTimeout` in the main thread after a while, or any interrupt when asked by another thread.

    The time runs from entering the context on.

    RQ has set the same alarm for its own timeout; leaving the context gives it back with the time that is left.

    Args:
        seconds: the time that the job has.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = math.inf
        self._pending: Interrupt | None = None
        self._armed = False
        self._switching = threading.Lock()
        self._thread = threading.get_ident()
        self._previous: tuple[Any, float, float] = (signal.SIG_DFL, 0.0, 0.0)

    def __enter__(self) -> Self:
        self.deadline = time.monotonic() + self.seconds
        handler = signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        left, _ = signal.setitimer(signal.ITIMER_REAL, self.seconds, REPEAT_SECONDS)
        self._previous = (handler, left, time.monotonic())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disarm()

    def disarm(self) -> None:
        """Interrupt nothing any more. Idempotent."""
        with self._switching:  # from here on no other thread sends a signal, which RQ's own alarm would take for its
            if not self._armed:
                return
            self._armed = False
        handler, left, since = self._previous
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - since), 0.001))

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.deadline

    @property
    def left_seconds(self) -> float:
        """The time that is left, never negative."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def reason(self) -> Interrupt | None:
        """What another thread has asked to raise."""
        return self._pending

    def interrupt(self, reason: Interrupt) -> None:
        """Raise in the main thread, from another thread; again with each call, in case a job has swallowed it."""
        self._pending = reason
        with self._switching:
            if self._armed:
                signal.pthread_kill(self._thread, signal.SIGALRM)

    def _ring(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._armed:
            return
        if self._pending is not None:
            raise self._pending
        if self.is_over:
            raise JobTimeout(f"The attempt ran longer than its timeout of {self.seconds:g} s.")
