"""The running attempt in logs: each log line names it, and its last lines are stored with it in the ledger.

A work-horse is a process for one attempt, so it sets the attempt for the whole process: for all threads and until the
process ends, so that RQ's last lines name it too. A process that lives on (RQ's SimpleWorker) sets it in the context
(`contextvars`) of the run and resets it after the run: coroutines and `asyncio.to_thread` see it, other threads of the
job do not.
"""

import threading
import time
from collections import deque
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Self

from jobledger.domain.payload import storable

LOG_TAIL_BYTES: Final = 64 * 1024
"""Most bytes of log lines that are stored with an attempt; the oldest lines are dropped."""


class LogTail:
    """The last lines that an attempt logged. Any thread may append."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def append(self, line: str) -> None:
        """Add a line, and drop the oldest lines over the limit."""
        line = storable(line)[-LOG_TAIL_BYTES:]
        with self._lock:
            self._lines.append(line)
            self._bytes += len(line.encode()) + 1
            while self._bytes > LOG_TAIL_BYTES and len(self._lines) > 1:
                self._bytes -= len(self._lines.popleft().encode()) + 1

    def text(self) -> str | None:
        """The lines, as one text; None if there are none."""
        return "\n".join(tuple(self._lines)) or None


RUNNING: Final = "started"


class LoggedRun:
    """One attempt, as its log lines name it. A context manager: lines logged inside belong to the attempt.

    Args:
        job_id: id of the row.
        job_type: the job's type.
        attempt: number of the attempt.
        queue: queue of the job.
        tail: receives the records of libraries.
        whole_process: this process was made for this attempt and ends with it.

    Attributes:
        tail: the lines that are stored with the attempt.
    """

    def __init__(
        self, job_id: str, job_type: str, attempt: int, queue: str, tail: LogTail, *, whole_process: bool
    ) -> None:
        self.tail = tail
        self._known = {"job_id": job_id, "job_type": job_type, "attempt": attempt, "queue": queue}
        self._status = RUNNING
        self._since = time.monotonic()
        self._until: float | None = None
        self._whole_process = whole_process
        self._token: Token[LoggedRun | None] | None = None

    def __enter__(self) -> Self:
        if self._whole_process:
            _process.run = self
        else:
            self._token = _run.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _run.reset(self._token)

    @property
    def is_over(self) -> bool:
        """Whether the attempt has ended."""
        return self._until is not None

    def ended(self, status: str) -> None:
        """Record the end: later lines name the status and the duration."""
        self._until = time.monotonic()
        self._status = status

    def fields(self) -> dict[str, Any]:
        """job_id, job_type, attempt, queue, duration_seconds (until its end, or until now) and status."""
        until = time.monotonic() if self._until is None else self._until
        return {**self._known, "duration_seconds": round(until - self._since, 3), "status": self._status}


class _Process:
    """The state of the process."""

    run: LoggedRun | None = None


_process: Final = _Process()
_run: Final[ContextVar[LoggedRun | None]] = ContextVar("jobledger_run", default=None)


def current_run() -> LoggedRun | None:
    """The attempt that runs in this context; None outside an attempt."""
    return _run.get() or _process.run
