"""The signals that stop `up`."""

import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Counts stop signals. A context manager, which restores the former handlers at its end.

    Until `hold()`, the first signal also raises KeyboardInterrupt, because no loop checks the count yet.

    Attributes:
        count: number of signals.
        first: number of the first signal; 0 before it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = 0
        self._interrupts = True
        self._former: dict[signal.Signals, Any] = {}

    def hold(self) -> None:
        """From now on only count."""
        self._interrupts = False

    def __enter__(self) -> Self:
        for number in _STOPPING:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._former[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number
        if self._interrupts and self.count == 1:  # a second signal would interrupt the clean-up
            raise KeyboardInterrupt
