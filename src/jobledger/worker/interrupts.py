"""Interrupts a running job from another thread of its process: by a signal in the main thread, else by an exception.

A swallowed interrupt is raised again by the next call of `interrupt`. The reason of the last one is kept: it decides
how the attempt ended, whatever the job does with the exception.
"""

import ctypes
import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self

from jobledger.domain.endings import Interrupt

NUMBER: Final = signal.SIGRTMIN + 6
"""Not SIGALRM, which a job may use, ignore or reset."""

_raise_in_thread: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc  # CPython's C API, "Thread-based asynchronous"
_raise_in_thread.argtypes = (ctypes.c_ulong, ctypes.py_object)


class Interrupter(Protocol):
    """Ends the work inside its context, when another thread asks for it.

    Attributes:
        seconds: the job's time.
        deadline: its end on the monotonic clock; infinite before the context is entered.
        reason: of the last interrupt; None if there was none.
    """

    seconds: float
    deadline: float
    reason: Interrupt | None

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def interrupt(self, reason: Interrupt) -> None:
        """Raise the reason in the work; do nothing outside of the context."""

    def disarm(self) -> None:
        """Interrupt nothing any more. Idempotent: leaving the context may itself be interrupted, in its first steps."""

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""

    @property
    def left_seconds(self) -> float:
        """The time that is left, never negative."""


class _Clock:
    """The part that both interrupters share: the job's time, and disarming."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = math.inf
        self.reason: Interrupt | None = None
        self._armed = False
        self._switching = threading.Lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disarm()

    def disarm(self) -> None:
        """Interrupt nothing any more. An interrupt during this is dropped: the work is over."""
        while self._armed:
            try:
                with self._switching:  # from here on no thread asks for another interrupt
                    self._armed = False
                    self._take_back()
            except Interrupt:
                continue

    def _take_back(self) -> None:
        """Drop an interrupt that was asked for and not raised yet."""

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.deadline

    @property
    def left_seconds(self) -> float:
        """The time that is left, never negative."""
        return max(0.0, self.deadline - time.monotonic())


class SignalInterrupter(_Clock):
    """For work in the main thread: a signal also ends its waits in system calls.

    RQ has set an alarm for its own timeout, whose handler raises in the main thread. It is stopped inside the context,
    and set again with the time that is left.

    Args:
        seconds: the job's time, from entering the context on.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._thread = threading.get_ident()
        self._handler: Any = signal.SIG_DFL
        self._alarm: tuple[Any, float, float] | None = None

    def __enter__(self) -> Self:
        self.deadline = time.monotonic() + self.seconds
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        self._alarm = (signal.getsignal(signal.SIGALRM), left, time.monotonic())
        self._handler = signal.signal(NUMBER, self._raise)
        self._armed = True
        return self

    def disarm(self) -> None:
        """Interrupt nothing any more, and give RQ's alarm back."""
        super().disarm()
        if self._alarm is None:
            return
        (handler, left, since), self._alarm = self._alarm, None
        signal.signal(NUMBER, self._handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - since), 0.001))

    def interrupt(self, reason: Interrupt) -> None:
        """Raise the reason in the main thread."""
        with self._switching:
            if self._armed:
                self.reason = reason
                signal.pthread_kill(self._thread, NUMBER)

    def _raise(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed and self.reason is not None:
            raise self.reason


class ThreadInterrupter(_Clock):
    """For work in another thread: CPython raises the exception there at its next instruction, not inside a wait in C.

    CPython takes only the class of the exception, so the work gets no message; `reason` has it. A thread with a
    `reason` was interrupted, and must not be used again.

    Args:
        seconds: the job's time, from entering the context on.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._thread = 0

    def __enter__(self) -> Self:
        self.deadline = time.monotonic() + self.seconds
        self._thread = threading.get_ident()
        self._armed = True
        return self

    def _take_back(self) -> None:
        _raise_in_thread(self._thread, ctypes.py_object())  # NULL: nothing

    def interrupt(self, reason: Interrupt) -> None:
        """Raise an exception of the reason's class in the thread."""
        with self._switching:
            if self._armed:
                self.reason = reason
                _raise_in_thread(self._thread, type(reason))


def interrupter_of_this_thread(seconds: float) -> Interrupter:
    """The interrupter that can reach the thread that calls this."""
    if threading.current_thread() is threading.main_thread():
        return SignalInterrupter(seconds)
    return ThreadInterrupter(seconds)
