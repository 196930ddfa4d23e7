"""Logs: how a process sets them up, and the texts of what happens to jobs."""

import logging
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from jobledger.payload import storable

LOG_TAIL_BYTES: Final = 64 * 1024
"""What is kept of the log lines of one attempt; the oldest lines go first."""

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def logging_config(level: str) -> dict[str, Any]:
    """How the logs of a process are set up, for `logging.config.dictConfig`: on standard error, by level.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": _FORMAT}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {"apscheduler": {"level": "WARNING"}},  # it reports every look at the clock
    }


def get_logger(name: str, **bound: Any) -> structlog.stdlib.BoundLogger:
    """A logger that takes an event and named values, and writes through the standard library's `logging`."""
    return _wrap(name, [], bound)


class LogTail:
    """The last lines that an attempt logged."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0

    def append(self, line: str) -> None:
        """Keep a line, and forget the oldest ones over the limit."""
        line = storable(line)
        self._lines.append(line)
        self._bytes += len(line.encode()) + 1
        while self._bytes > LOG_TAIL_BYTES and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft().encode()) + 1

    def text(self) -> str | None:
        """The lines, as one text; None if there are none."""
        return "\n".join(tuple(self._lines)) or None


def get_job_logger(tail: LogTail, **bound: Any) -> structlog.stdlib.BoundLogger:
    """The logger of one attempt: every line is also kept with the attempt."""

    def keep(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        shown = {key: value for key, value in event.items() if key not in bound}
        tail.append(f"{method.upper()} {_as_text(shown)}")
        return event

    return _wrap("jobledger.job", [keep], bound)


def _wrap(name: str, processors: list[Any], bound: dict[str, Any]) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.format_exc_info,
            *processors,
            lambda _logger, _method, event: _as_text(event),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger.bind(**bound)


def _as_text(event: MutableMapping[str, Any]) -> str:
    """One line whatever the values hold: a text with a line break must not look like a second record."""
    values = dict(event)
    trace = values.pop("exception", "")
    words = [str(values.pop("event", "")).replace("\n", "\\n").replace("\r", "\\r")]
    words += [f"{key}={value!r}" for key, value in values.items()]
    return " ".join(words) + (f"\n{trace}" if trace else "")
