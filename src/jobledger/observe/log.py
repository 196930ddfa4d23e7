"""Logs: their set-up in a process, and the loggers of jobs.

Every record of a process, also of libraries, goes through one formatter (`log_lines`) to standard error.
"""

import contextlib
import logging.config
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from types import TracebackType
from typing import Any, Final

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

from jobledger.observe.log_lines import Event, LineFormatter, event_text, represented
from jobledger.observe.log_run import LogTail, current_run
from jobledger.settings import Settings

JOB_LOGGER: Final = "jobledger.job"

log: Final = logging.getLogger(__name__)


def logging_config(settings: Settings, level: str | None = None) -> dict[str, Any]:
    """The configuration of a process's logs, on standard error, for `logging.config.dictConfig`.

    Records of libraries inside an attempt, at INFO and above, are also stored with the attempt, if the level lets them.

    Args:
        settings: their `log_level` and `log_format`.
        level: instead of the settings'.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"()": LineFormatter, "layout": settings.log_format},
            "tail": {"()": LineFormatter, "layout": "tail"},
        },
        "handlers": {
            "stderr": {"()": LineHandler, "formatter": "line"},
            "tail": {"()": TailHandler, "formatter": "tail", "level": "INFO"},
        },
        "root": {"level": level or settings.log_level, "handlers": ["stderr", "tail"]},
        "loggers": {
            "apscheduler": {"level": "WARNING"},  # it logs every look at the clock
            "rq.worker": {"propagate": True},  # a worker without our configuration has given them handlers
            "rq.job": {"propagate": True},
        },
    }


def set_up_logging(settings: Settings) -> None:
    """Set up the logs of this process; entry points call this first.

    Warnings and uncaught exceptions become records, too.
    """
    logging.config.dictConfig(logging_config(settings))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    if not structlog.is_configured():  # for libraries that log with structlog
        structlog.configure(
            processors=_PROCESSORS, wrapper_class=BoundLogger, logger_factory=structlog.stdlib.LoggerFactory()
        )


@contextmanager
def muted() -> Iterator[None]:
    """Format records inside, but write them nowhere; for a process without other threads."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)]
    streams = [handler.setStream(StringIO()) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)


def get_logger(name: str, **bound: Any) -> BoundLogger:
    """A logger that takes an event and named values, and writes through the standard library's `logging`."""
    return _wrap(name, _PROCESSORS, bound)


def get_job_logger(tail: LogTail, **bound: Any) -> BoundLogger:
    """The logger of one attempt: every line is also stored with the attempt."""

    def keep(_: Any, method: str, event: Event) -> Event:
        shown = {key: value for key, value in event.items() if key not in bound}
        tail.append(f"{method.upper()} {event_text(shown)}")
        return event

    *prepare, hand_over = _PROCESSORS[1:]  # lines below the level are stored, too
    return _wrap(JOB_LOGGER, [*prepare, keep, hand_over], bound)


class LineHandler(logging.StreamHandler[Any]):
    """Writes to standard error; a record that cannot be formatted is replaced by one that says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called while an exception of `emit` is handled."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the reader of standard error is gone
            return
        if type(error).__module__ in _RAISED_BY_SIGNALS:
            raise
        instead = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, _UNSHOWN, (), None)
        at = f"{record.pathname}:{record.lineno}"
        instead.__dict__.update(template=represented(record.msg), error=represented(error), at=at)
        with contextlib.suppress(Exception):  # logging must never raise
            self.stream.write(self.format(instead) + self.terminator)


class TailHandler(logging.Handler):
    """Adds records to the log of the running attempt, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record."""
        run = current_run()
        if run is None or run.is_over or record.name == JOB_LOGGER:  # the job logger adds its lines itself
            return
        try:
            run.tail.append(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing: the handler of standard error meets and reports the same error."""


class _Event(dict[str, Any]):
    """An event on its way through `logging`; a foreign formatter sees it as text."""

    def __str__(self) -> str:
        return event_text(self)


def _hand_over(logger: Any, method: str, event: Event) -> Any:
    return ProcessorFormatter.wrap_for_formatter(logger, method, _Event(event))


def _wrap(name: str, processors: list[Any], bound: dict[str, Any]) -> BoundLogger:
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name), processors=processors, wrapper_class=BoundLogger
    )
    return logger.bind(**bound)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, Exception):  # Ctrl-C is no error
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("Uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is None or isinstance(what.exc_value, SystemExit):
        return
    name = what.thread.name if what.thread is not None else "unknown"
    log.error("Uncaught exception in thread %s", name, exc_info=(what.exc_type, what.exc_value, what.exc_traceback))


_UNSHOWN: Final = "A record cannot be shown"
_RAISED_BY_SIGNALS: Final = ("rq.exceptions", "rq.timeouts")
"""Modules of RQ's exceptions that signal handlers raise anywhere in the process: swallowing one would lose a stop."""
_PROCESSORS: Final[list[Any]] = [
    structlog.stdlib.filter_by_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.format_exc_info,
    _hand_over,
]
