"""Restarts ended children, with growing pauses, until it gives up."""

import time
from dataclasses import dataclass
from typing import Final, Protocol

from jobledger.errors import JobledgerError
from jobledger.up.output import Output

QUICK_SECONDS: Final = 15.0
"""A child that lives longer than this works: the count of its quick deaths starts again."""

QUICK_DEATHS: Final = 5
"""Number of quick deaths in a row after which a child is given up."""

FIRST_PAUSE_SECONDS: Final = 0.5
"""The first pause before a restart; it doubles with each quick death."""


class GaveUp(JobledgerError):
    """A child does not stay up; the message names it."""


class Child(Protocol):
    """A child that the supervisor can watch."""

    name: str

    def start(self) -> None:
        """Start it."""

    def ended(self) -> str | None:
        """How it ended; None while it runs."""


@dataclass
class _Watch:
    child: Child
    started_at: float
    quick_deaths: int = 0
    start_at: float | None = None


class Supervisor:
    """Watches children and restarts them.

    Args:
        output: receives its messages.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._watches: list[_Watch] = []

    def watch(self, child: Child) -> None:
        """Keep a started child running."""
        self._watches.append(_Watch(child, started_at=time.monotonic()))

    def tend(self) -> None:
        """Check all children once; restart those whose pause is over.

        Raises:
            GaveUp: a child died too often.
        """
        for watch in self._watches:
            if watch.start_at is not None:
                self._start_when_due(watch, watch.start_at)
            elif how := watch.child.ended():
                self._plan_start(watch, how)

    def _plan_start(self, watch: _Watch, how: str) -> None:
        now = time.monotonic()
        quick = now - watch.started_at < QUICK_SECONDS
        watch.quick_deaths = watch.quick_deaths + 1 if quick else 1
        if watch.quick_deaths >= QUICK_DEATHS:
            raise GaveUp(f"{watch.child.name} {how}, the {QUICK_DEATHS}th time in a row soon after its start")
        pause = FIRST_PAUSE_SECONDS * 2 ** (watch.quick_deaths - 1)
        self._output.say(f"{watch.child.name} {how}; it is started again in {pause:g} s")
        watch.start_at = now + pause

    def _start_when_due(self, watch: _Watch, due: float) -> None:
        if time.monotonic() >= due:
            watch.child.start()
            watch.started_at = time.monotonic()
            watch.start_at = None
            self._output.say(f"{watch.child.name} was started again")
