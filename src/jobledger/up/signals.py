"""What asks `up` to stop."""

import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Counts the signals that ask us to stop. A context manager; the former handlers return at its end.

    Until `hold()`, the first of them also raises KeyboardInterrupt: while we prepare, there is no loop that looks.

    Attributes:
        count: how many came.
        first: the number of the first one, 0 before it.
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
        if self._interrupts and self.count == 1:  # a second one would interrupt the clean-up of the first
            raise KeyboardInterrupt
