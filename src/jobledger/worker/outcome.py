"""The meaning of an exception that ended an attempt, and the evidence that is kept of it.

The exception and all it refers to are a user's objects: `__str__`, `__repr__`, `__getattr__`, `__class__` and notes run
a user's code, which may raise anything, also SystemExit, or never end. So types are checked and not instances, each
text is taken on its own and replaced if that fails, and all of it happens while the attempt can be interrupted.
"""

import re
import resource
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg2
from sqlalchemy.exc import DBAPIError

from jobledger.connections.postgres import LOCK_NOT_AVAILABLE, NO_ROOM, QUERY_CANCELED, TRY_AGAIN, sql_state
from jobledger.domain.endings import (
    Cancel,
    FencedOut,
    GiveUp,
    HandedBack,
    Interrupt,
    JobCanceled,
    JobTimeout,
    RetryIn,
    Signal,
    Snooze,
)
from jobledger.domain.payload import storable
from jobledger.domain.records import Evidence
from jobledger.domain.retry import Retry
from jobledger.domain.status import Outcome
from jobledger.errors import LedgerUnavailable
from jobledger.ledger.leases import Progress

TEXT_LIMIT: Final = 100_000
MOST_EXCEPTIONS: Final = 1000
"""Exceptions of a group, with their causes, that are looked at, at most."""

UNPRINTABLE: Final = "(the error cannot be printed)"
_UNPRINTABLE_PART: Final = re.compile(r"<exception \w+\(\) failed>")
"""In a traceback, in place of the text of a context or cause (`_safe_string` of CPython's traceback.py). It stands for
any exception, so also for an interrupt that ended a `__str__` without an end."""

_STEERING: Final = (Interrupt, Signal)

_OUTCOMES: Final[tuple[tuple[type[BaseException], Outcome], ...]] = (
    (FencedOut, Outcome.LOST),
    (HandedBack, Outcome.HANDED_BACK),
    (JobCanceled, Outcome.CANCELED),
    (JobTimeout, Outcome.TIMEOUT),
    (Cancel, Outcome.CANCELED),
    (GiveUp, Outcome.GAVE_UP),
    (RetryIn, Outcome.ERROR),
)
"""By precedence. An ordinary error comes after these and before `Snooze`: a group in which one task failed and another
wants to wait has failed."""


class EffectsLost(Exception):
    """The job's writes are gone with its connection; the attempt is lost, not failed."""


def deciding(error: BaseException) -> BaseException:
    """The exception that decides how an attempt has ended.

    Usually it is the raised one. The steering ones (`Snooze`, `Cancel`, `GiveUp`, `Retry.in_`, and the interrupts) are
    also found in exception groups, such as those of `asyncio.TaskGroup`, and as the explicit cause of another one,
    `raise … from …`, because libraries wrap exceptions. Implicit contexts are not searched: an error that occurs while
    another exception is handled is an error. Of several, the order of `_OUTCOMES` decides.
    """
    leaves = list(_leaves(error))
    for kind, _ in _OUTCOMES:
        for one in leaves:
            if issubclass(type(one), kind):
                return one
    plain = [one for one in leaves if not issubclass(type(one), Snooze)]
    if plain or not leaves:
        return plain[0] if len(plain) == 1 else error
    return leaves[0]


def refused_by(retry: Retry, error: BaseException) -> BaseException:
    """Of the errors in a group, the one that the policy does not retry; otherwise the group, or the error itself."""
    for one in _leaves(error):
        if not issubclass(type(one), _STEERING) and not retry.allows(one):
            return one
    return error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, or the only one; each is replaced by its steering cause, if it has one."""
    waiting, seen = [error], 0
    while waiting and seen < MOST_EXCEPTIONS:
        one = waiting.pop()
        seen += 1
        if issubclass(type(one), BaseExceptionGroup):
            waiting.extend(reversed(BaseExceptionGroup.exceptions.__get__(one)))  # a subclass may have its own
        elif not issubclass(type(one), CancelledError):
            yield _steering_cause(one) or one


def _steering_cause(error: BaseException) -> BaseException | None:
    one: BaseException | None = error
    for _ in range(MOST_EXCEPTIONS):
        if one is None or issubclass(type(one), _STEERING):
            return one
        if issubclass(type(one), BaseExceptionGroup):
            found = deciding(one)
            return found if issubclass(type(found), _STEERING) else None
        one = _cause_of(one)
    return None


_cause_of: Final[Callable[[BaseException], BaseException | None]] = BaseException.__dict__["__cause__"].__get__


def classify(error: BaseException, reason: Interrupt | None, time_is_over: bool, connection: Any = None) -> Outcome:
    """The outcome of an attempt that this exception has ended.

    Args:
        error: the raised exception; a group is judged by `deciding`.
        reason: the interrupt that was raised in the job, also if the job swallowed it.
        time_is_over: whether the job's time was up.
        connection: the driver's, of the attempt: errors of other connections are the job's.
    """
    decided = reason if reason is not None else deciding(error)
    for kind, outcome in _OUTCOMES:
        if issubclass(type(decided), kind):
            return outcome  # also if the connection was lost: the outcome needs no effects
    if issubclass(type(decided), Snooze):
        return Outcome.SNOOZED
    if issubclass(type(decided), EffectsLost | LedgerUnavailable) or (connection is not None and connection.closed):
        return Outcome.LOST
    if not issubclass(type(decided), DBAPIError | psycopg2.Error):
        return Outcome.ERROR
    state = sql_state(decided)
    if state in NO_ROOM and connection is not None and _came_over(decided) is connection:
        return Outcome.LOST
    if state in (QUERY_CANCELED, LOCK_NOT_AVAILABLE) and time_is_over:
        return Outcome.TIMEOUT
    if state in TRY_AGAIN and not issubclass(type(decided), DBAPIError):  # the ledger's own statement, not the job's
        return Outcome.LOST
    return Outcome.ERROR


def _came_over(error: BaseException) -> Any:
    """The driver's connection whose statement failed; None if the error does not have it."""
    try:
        return getattr(getattr(getattr(error, "orig", error), "cursor", None), "connection", None)
    except Exception:  # an attribute of a job's own exception may raise anything
        return None


def evidence_of(error: BaseException | None, progress: Progress, *, alone: bool, traced: bool = False) -> Evidence:
    """The evidence that is kept of an attempt.

    Args:
        error: the exception that ended it; None if it completed.
        progress: its last progress, and the tail of its log.
        alone: the process ran nothing else, so that its memory is the job's.
        traced: keep the traceback.
    """
    decided = deciding(error) if error is not None else None
    asked_for = decided is not None and issubclass(type(decided), Snooze | Cancel | JobCanceled)  # nothing went wrong
    failed = error is not None and not asked_for
    said = decided if decided is not None and issubclass(type(decided), _STEERING) else error
    return Evidence(
        error_type=_text(lambda: type(said).__qualname__) if failed else None,
        error_message=_text(lambda: str(said)) if said is not None else None,
        traceback=_text(lambda: "".join(traceback.format_exception(error))) if failed and traced else None,
        log_tail=storable(progress.log_tail) if progress.log_tail is not None else None,
        peak_memory_bytes=peak_memory_bytes() if alone else None,
        progress_done=progress.progress_done,
        progress_total=progress.progress_total,
        progress_note=progress.progress_note,
    )


def is_unprintable(evidence: Evidence) -> bool:
    """Whether a part of an error could not be printed: another attempt to print it might have no end."""
    texts = [text for text in (evidence.error_type, evidence.error_message, evidence.traceback) if text is not None]
    return any(text.startswith(UNPRINTABLE) or _UNPRINTABLE_PART.search(text) for text in texts)


def _text(take: Callable[[], str]) -> str:
    """A user's text that Postgres can store: without NUL and lone surrogates, and cut to its end if it is long."""
    try:
        text = str.__str__(take())[-TEXT_LIMIT:]
        return storable(text)[-TEXT_LIMIT:]
    except BaseException as unprintable:  # a user's code may raise anything, also SystemExit
        return f"{UNPRINTABLE}: {_name_of(unprintable)}"


def _name_of(error: BaseException) -> str:
    try:
        return storable(str.__str__(type(error).__name__))[:100]
    except BaseException:
        return "another error"


def peak_memory_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB, getrusage(2)
