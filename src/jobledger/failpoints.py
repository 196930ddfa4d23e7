"""Named places at which a process can be killed, frozen or made to fail, so that tests reach narrow windows.

`JOBLEDGER_FAILPOINTS=after_claim=kill:/tmp/once,before_push=raise` sets them. Unset, a place costs one function
call, about 0.1 µs, and a job of some milliseconds passes six: `benchmarks/failpoints.py` measures both.
"""

import os
import select
import signal
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from jobledger.errors import ConfigurationError

VARIABLE: Final = "JOBLEDGER_FAILPOINTS"
LONGEST_ANSWER_SECONDS: Final = 10.0


class Failpoint(StrEnum):
    """The places, in the order of a job's path."""

    AFTER_INSERT = "after_insert"
    """Dispatch: the rows are written, their transaction is open."""
    BEFORE_PUSH = "before_push"
    """Rows are committed as queued; their wake-ups are not pushed yet."""
    AFTER_CLAIM = "after_claim"
    """The attempt has begun; no line of the job has run."""
    BEFORE_FINISH = "before_finish"
    """The job has returned; the finishing statement has not been sent."""
    COMMIT_SENT = "commit_sent"
    """The server has answered the statement that commits the job's end (its COMMIT, or a statement that is its own
    transaction); the process has not read the answer."""
    AFTER_FINISH = "after_finish"
    """The job's end is committed; RQ's own bookkeeping has not begun."""
    AFTER_RELAY_PUSH = "after_relay_push"
    """Relay: Redis has the wake-ups; the transaction that records this is open."""
    REAPER_DECIDED = "reaper_decided"
    """Reaper: an attempt has been judged lost; nothing has been done about it."""
    TICK_TAKEN = "tick_taken"
    """Schedules: the tick is written in an open transaction; its function has not been called."""


class Action(StrEnum):
    """The action at a failpoint."""

    KILL = "kill"
    """SIGKILL for this process."""
    FREEZE = "freeze"
    """SIGSTOP for this process, with all of its threads, until a SIGCONT."""
    RAISE = "raise"
    """`FailpointReached` is raised."""


class FailpointReached(Exception):
    """Raised by the action `raise`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The action planned for one failpoint.

    Attributes:
        once: path of a file; only the process that creates it acts, and writes its pid there. None: act each time.
    """

    action: Action
    once: str | None


def parse(text: str) -> Mapping[Failpoint, Plan]:
    """Read `place=action[:file]`, several separated by commas.

    Raises:
        ConfigurationError: a place or an action does not exist.
    """
    plans = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        place, _, what = part.partition("=")
        action, _, once = what.partition(":")
        try:
            plans[Failpoint(place)] = Plan(Action(action), once or None)
        except ValueError as error:
            raise ConfigurationError(
                f"{VARIABLE}: {part!r}: {error}; say place=action[:file]. Places: {', '.join(Failpoint)}. "
                f"Actions: {', '.join(Action)}."
            ) from None
    return plans


class _Process:
    """The state of the process: its plans, read when it first reaches a place."""

    plans: Mapping[Failpoint, Plan] | None = None
    disarmed = False


@contextmanager
def disarmed() -> Iterator[None]:
    """Disable all failpoints inside: for code that passes the places without running a job."""
    _Process.disarmed = True
    try:
        yield
    finally:
        _Process.disarmed = False


def reach(place: Failpoint) -> None:
    """Perform the action planned for this place, if there is one.

    Raises:
        FailpointReached: that is the plan.
    """
    plan = _plan(place)
    if plan is not None:
        _act(place, plan)


def is_planned(place: Failpoint) -> bool:
    """Whether an action is planned for this place."""
    return _plan(place) is not None


def reach_with_commit_sent(raw: Any, statement: bytes = b"COMMIT") -> None:
    """The place `COMMIT_SENT`: if an action is planned, let the server commit, and act before the answer is read.

    Args:
        raw: the psycopg2 connection, without TLS; it cannot be used afterwards.
        statement: the statement that makes the server commit, with its parameters filled in.

    Raises:
        FailpointReached: that is the plan.
    """
    plan = _plan(Failpoint.COMMIT_SENT)
    if plan is None:
        return
    text = statement + b"\x00"
    os.write(raw.fileno(), b"Q" + struct.pack("!I", 4 + len(text)) + text)  # simple query: the protocol, 55.7
    answered = select.poll()
    answered.register(raw.fileno(), select.POLLIN)
    answered.poll(LONGEST_ANSWER_SECONDS * 1000)
    try:
        _act(Failpoint.COMMIT_SENT, plan)
    finally:
        raw.close()


def _plan(place: Failpoint) -> Plan | None:
    if _Process.plans is None:
        _Process.plans = parse(os.environ.get(VARIABLE, ""))
    return None if _Process.disarmed else _Process.plans.get(place)


def _act(place: Failpoint, plan: Plan) -> None:
    if plan.once is not None:
        try:
            marker = os.open(plan.once, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        os.write(marker, str(os.getpid()).encode())
        os.close(marker)
    match plan.action:  # a signal to this thread stops the process before the thread goes on
        case Action.KILL:
            signal.pthread_kill(threading.get_ident(), signal.SIGKILL)
        case Action.FREEZE:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        case Action.RAISE:
            raise FailpointReached(f"Failpoint {place} was reached.")
