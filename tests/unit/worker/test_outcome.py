"""What the error that ended an attempt means for its job."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from psycopg2 import errorcodes, errors
from sqlalchemy.exc import OperationalError

from jobledger.domain.endings import Cancel, GiveUp, HandedBack, JobCanceled, JobTimeout, Snooze
from jobledger.domain.retry import Retry
from jobledger.domain.status import Outcome
from jobledger.errors import LedgerUnavailable, UnknownJobType
from jobledger.ledger.leases import Progress
from jobledger.worker.outcome import TEXT_LIMIT, UNPRINTABLE, classify, deciding, evidence_of, refused_by

OURS = SimpleNamespace(closed=0)
ANOTHER = SimpleNamespace(closed=0)


def raised(code: str, over: Any) -> psycopg2.Error:
    """An error with this SQLSTATE, as the driver raises it."""
    kind = type("Raised", (errors.lookup(code),), {"pgcode": code, "cursor": SimpleNamespace(connection=over)})
    return kind("…")  # type: ignore[no-any-return]


@pytest.mark.parametrize("code", [errorcodes.DISK_FULL, errorcodes.IO_ERROR])
def test_a_server_without_room_is_not_the_jobs_fault(code: str) -> None:
    for error in (raised(code, OURS), OperationalError("INSERT …", {}, raised(code, OURS))):
        assert classify(error, None, False, OURS) is Outcome.LOST


def test_another_server_is_the_jobs_business() -> None:
    assert classify(raised(errorcodes.DISK_FULL, ANOTHER), None, False, OURS) is Outcome.ERROR


@pytest.mark.parametrize("code", [errorcodes.UNIQUE_VIOLATION, errorcodes.OUT_OF_MEMORY])
def test_what_a_statement_does_wrong_is(code: str) -> None:
    assert classify(raised(code, OURS), None, False, OURS) is Outcome.ERROR


# -- which exception decides


def grouped(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("unhandled errors in a TaskGroup", list(errors))


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def during(error: BaseException, handled: BaseException) -> BaseException:
    error.__context__ = handled
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError(), Outcome.ERROR),
        (Snooze(1), Outcome.SNOOZED),
        (Cancel(), Outcome.CANCELED),
        (GiveUp(), Outcome.GAVE_UP),
        (Retry.in_(1), Outcome.ERROR),
        (JobCanceled("by ann"), Outcome.CANCELED),
        (grouped(Snooze(1)), Outcome.SNOOZED),
        (grouped(Snooze(1), Snooze(2)), Outcome.SNOOZED),
        (grouped(grouped(GiveUp())), Outcome.GAVE_UP),
        (grouped(Snooze(1), ValueError()), Outcome.ERROR),
        (grouped(GiveUp(), ValueError()), Outcome.GAVE_UP),
        (grouped(GiveUp(), Cancel()), Outcome.CANCELED),
        (grouped(asyncio.CancelledError(), Snooze(1)), Outcome.SNOOZED),
        (grouped(JobCanceled("by ann"), GiveUp()), Outcome.CANCELED),
        (caused(RuntimeError(), Snooze(1)), Outcome.SNOOZED),
        (caused(RuntimeError(), caused(RuntimeError(), GiveUp())), Outcome.GAVE_UP),
        (caused(RuntimeError(), grouped(Cancel())), Outcome.CANCELED),
        (grouped(caused(RuntimeError(), GiveUp())), Outcome.GAVE_UP),
        (caused(Snooze(1), GiveUp()), Outcome.SNOOZED),
        (during(OSError(), Snooze(1)), Outcome.ERROR),
        (LedgerUnavailable("away"), Outcome.LOST),
        (grouped(LedgerUnavailable("away")), Outcome.LOST),
        (UnknownJobType("raised by a job"), Outcome.ERROR),
        (asyncio.CancelledError(), Outcome.ERROR),
        (SystemExit(0), Outcome.ERROR),
    ],
    ids=lambda one: repr(one) if isinstance(one, BaseException) else str(one),
)
def test_what_steers_is_found_in_groups_and_causes(error: BaseException, outcome: Outcome) -> None:
    assert classify(error, None, False) is outcome


@pytest.mark.parametrize(
    "made_of_it", [ValueError(), Snooze(1), GiveUp(), SystemExit(3), grouped(ValueError())], ids=repr
)
def test_an_interrupt_that_rang_decides_whatever_the_job_has_made_of_it(made_of_it: BaseException) -> None:
    assert classify(made_of_it, JobTimeout("too long"), True) is Outcome.TIMEOUT
    assert classify(made_of_it, HandedBack("stops"), False) is Outcome.HANDED_BACK
    assert classify(made_of_it, JobCanceled("by ann"), False) is Outcome.CANCELED


def test_causes_that_lead_in_a_circle_come_to_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert classify(first, None, False) is Outcome.ERROR
    assert deciding(first) is first


def test_a_group_of_any_size_is_judged() -> None:
    error: BaseException = GiveUp()
    for _ in range(200):
        error = BaseExceptionGroup("deep", [error])
    assert classify(error, None, False) is Outcome.GAVE_UP
    assert classify(grouped(*(ValueError() for _ in range(100_000))), None, False) is Outcome.ERROR


def test_the_policy_judges_the_errors_in_a_group() -> None:
    policy = Retry(3, give_up_on=(KeyError,))
    harmless, final = ValueError(), KeyError()

    assert refused_by(policy, grouped(harmless, final)) is final
    assert policy.allows(refused_by(Retry(3), harmless))


# -- what is kept of an exception, which is a user's object


class ApiError(Exception):
    """Looks attributes up, as clients of web APIs do; a missing one is a KeyError."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class SaysNoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class HasNoClass(Exception):
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise KeyboardInterrupt


class ManyNotes(Exception):
    def __init__(self) -> None:
        super().__init__("with notes")
        self.__notes__ = ["a note of some length " * 100] * 10_000


class HidesItsGroup(BaseExceptionGroup[BaseException]):
    @property
    def exceptions(self) -> tuple[BaseException, ...]:
        raise SystemExit(1)


class NulNamed(Exception):
    __qualname__ = "Nul\x00Named"


UNFRIENDLY: dict[str, Callable[[], BaseException]] = {
    "looks attributes up": lambda: ApiError("the API says no"),
    "exits in __str__": Unprintable,
    "says no text": SaysNoText,
    "has no class": lambda: HasNoClass("x"),
    "has many notes": ManyNotes,
    "has NUL in its name": lambda: NulNamed("x"),
    "hides its group": lambda: HidesItsGroup("hidden", [ValueError()]),
    "has an unprintable cause": lambda: caused(ValueError("outer"), Unprintable()),
    "is a group of them": lambda: grouped(Unprintable(), ApiError()),
    "is no whole SyntaxError": lambda: SyntaxError("bad rule", ("rules.txt", "x", None, None)),  # type: ignore[arg-type]
    "says what no text can be": lambda: ValueError("\ud800 and \x00"),
    "says very much": lambda: ValueError("x" * 10_000_000),
}


@pytest.mark.parametrize("make", UNFRIENDLY.values(), ids=UNFRIENDLY)
def test_whatever_an_exception_does_its_end_is_an_error_with_a_text(make: Callable[[], BaseException]) -> None:
    error = make()

    outcome = classify(error, None, False)
    evidence = evidence_of(error, Progress(), alone=True, traced=True)

    assert outcome is Outcome.ERROR
    for text in (evidence.error_type, evidence.error_message, evidence.traceback):
        assert text is not None
        assert len(text) <= TEXT_LIMIT
        assert "\x00" not in text
        text.encode()


def test_an_exception_that_cannot_be_printed_has_a_placeholder() -> None:
    evidence = evidence_of(Unprintable(), Progress(), alone=True, traced=True)

    assert evidence.error_type == "Unprintable"
    assert evidence.error_message == f"{UNPRINTABLE}: SystemExit"


def test_the_memory_of_a_process_that_runs_other_attempts_too_is_not_the_jobs() -> None:
    assert evidence_of(None, Progress(), alone=False).peak_memory_bytes is None
    assert (evidence_of(None, Progress(), alone=True).peak_memory_bytes or 0) > 0
