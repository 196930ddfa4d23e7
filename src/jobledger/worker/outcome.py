"""What an exception that ended an attempt means, and what is kept of it."""

import resource
import traceback
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from jobledger.connections.postgres import LOCK_NOT_AVAILABLE, NO_ROOM, QUERY_CANCELED, TRY_AGAIN, sql_state
from jobledger.domain.endings import Cancel, GiveUp, HandedBack, JobCanceled, JobTimeout, Signal, Snooze
from jobledger.domain.payload import storable
from jobledger.domain.records import Evidence
from jobledger.domain.status import Outcome
from jobledger.errors import LedgerUnavailable, UnknownJobType
from jobledger.ledger.leases import Progress
from jobledger.worker.interrupts import Alarm

TEXT_LIMIT: Final = 100_000

_ASKED_FOR: Final[dict[type[Signal], Outcome]] = {
    Snooze: Outcome.SNOOZED,
    Cancel: Outcome.CANCELED,
    GiveUp: Outcome.GAVE_UP,
}


class EffectsLost(Exception):
    """What a job wrote is gone with its connection; the attempt is lost, not failed."""


def classify(error: BaseException, alarm: Alarm | None, connection: Any = None) -> Outcome:
    """How an attempt ended that this exception has ended.

    Args:
        error: what was raised.
        alarm: of the attempt.
        connection: the driver's, of the run: what other servers complain of is the job's business.
    """
    if alarm is not None and isinstance(alarm.reason, HandedBack):
        return Outcome.HANDED_BACK  # whatever the job made of the interrupt
    if isinstance(error, JobCanceled) or (alarm is not None and isinstance(alarm.reason, JobCanceled)):
        return Outcome.CANCELED
    if isinstance(error, JobTimeout):
        return Outcome.TIMEOUT
    if isinstance(error, UnknownJobType):
        return Outcome.UNKNOWN_TYPE
    for signal, outcome in _ASKED_FOR.items():
        if isinstance(error, signal):
            return outcome  # it needs nothing of what a lost connection has taken along
    if isinstance(error, EffectsLost | LedgerUnavailable) or (connection is not None and connection.closed):
        return Outcome.LOST
    state = sql_state(error)
    if state in NO_ROOM and connection is not None and _came_over(error) is connection:
        return Outcome.LOST
    if state in (QUERY_CANCELED, LOCK_NOT_AVAILABLE) and alarm is not None and alarm.is_over:
        return Outcome.TIMEOUT
    if state in TRY_AGAIN and not isinstance(error, DBAPIError):  # the ledger's own statement, not the job's
        return Outcome.LOST
    return Outcome.ERROR


def _came_over(error: BaseException) -> Any:
    """The driver's connection whose statement failed; None if the error does not say."""
    return getattr(getattr(getattr(error, "orig", error), "cursor", None), "connection", None)


def evidence_of(error: BaseException | None, progress: Progress, log_tail: str | None, *, traced: bool) -> Evidence:
    """What is kept of an attempt.

    Args:
        error: what ended it; None if it completed.
        progress: what it has said of itself.
        log_tail: its last lines.
        traced: keep the traceback.
    """
    asked_for = isinstance(error, Snooze | Cancel | JobCanceled)  # nothing went wrong
    return Evidence(
        error_type=type(error).__qualname__ if error is not None and not asked_for else None,
        error_message=_storable(_in_text(error)) if error is not None else None,
        traceback=_storable(_trace(error)) if error is not None and traced and not asked_for else None,
        log_tail=_storable(log_tail) if log_tail is not None else None,
        peak_memory_bytes=peak_memory_bytes(),
        progress_done=progress.progress_done,
        progress_total=progress.progress_total,
        progress_note=progress.progress_note,
    )


def _storable(text: str) -> str:
    """What Postgres can store of a text: no NUL, no lone surrogates, and its end if it is long."""
    return storable(text)[-TEXT_LIMIT:]


def _in_text(error: BaseException) -> str:
    """What an exception says; its class's `__str__` is a user's code too."""
    try:
        return str(error)
    except Exception as unprintable:
        return f"(the error cannot be printed: {type(unprintable).__name__})"


def _trace(error: BaseException) -> str:
    """The traceback, also of an exception that cannot be printed."""
    return "".join(traceback.format_exception(error))


def peak_memory_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB, getrusage(2)
