"""The last lines that an attempt logged; they are kept with it in the ledger."""

import threading
from collections import deque
from typing import Final

from jobledger.payload import storable

LOG_TAIL_BYTES: Final = 64 * 1024
"""What is kept of the log lines of one attempt; the oldest lines go first."""


class LogTail:
    """The last lines that an attempt logged. Any thread may append."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def append(self, line: str) -> None:
        """Keep a line, and forget the oldest ones over the limit."""
        line = storable(line)[-LOG_TAIL_BYTES:]
        with self._lock:
            self._lines.append(line)
            self._bytes += len(line.encode()) + 1
            while self._bytes > LOG_TAIL_BYTES and len(self._lines) > 1:
                self._bytes -= len(self._lines.popleft().encode()) + 1

    def text(self) -> str | None:
        """The lines, as one text; None if there are none."""
        return "\n".join(tuple(self._lines)) or None
