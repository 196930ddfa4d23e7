"""Interrupts of running work, by a signal in the main thread and by an exception in another: real ones."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jobledger.domain.endings import FencedOut, HandedBack, Interrupt, JobTimeout
from jobledger.worker.interrupts import (
    NUMBER,
    Interrupter,
    SignalInterrupter,
    ThreadInterrupter,
    interrupter_of_this_thread,
)

LONG = 60.0
KINDS = [SignalInterrupter, ThreadInterrupter]


@pytest.fixture(autouse=True)
def _leaves_no_handler_behind() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (NUMBER, signal.SIGALRM)]
    yield
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    after = [signal.getsignal(number) for number in (NUMBER, signal.SIGALRM)]
    assert (left, after) == ((0.0, 0.0), before)


def work() -> None:
    """Work in short waits until interrupted: an exception of another thread comes between two instructions."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        time.sleep(0.001)


def interrupted(interrupter: Interrupter, reason: Interrupt, wait: Callable[[], object] = work) -> None:
    """Work, and be interrupted by another thread."""
    thread = threading.Thread(target=interrupter.interrupt, args=[reason])
    thread.start()
    try:
        wait()
    finally:
        thread.join()


@pytest.mark.parametrize("kind", KINDS)
def test_work_that_ends_in_time_is_left_alone(kind: Callable[[float], Interrupter]) -> None:
    with kind(LONG) as interrupter:
        pass

    assert not interrupter.is_over
    assert 0 < interrupter.left_seconds <= LONG
    assert interrupter.reason is None


@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_interrupts_and_the_reason_stays_known(kind: Callable[[float], Interrupter]) -> None:
    reason = FencedOut("attempt 1")
    with pytest.raises(FencedOut), kind(LONG) as interrupter:
        interrupted(interrupter, reason)

    assert interrupter.reason is reason


def test_a_signal_brings_the_reason_itself_and_ends_a_wait_in_a_system_call() -> None:
    with pytest.raises(FencedOut, match="attempt 1"), SignalInterrupter(LONG) as interrupter:
        interrupted(interrupter, FencedOut("attempt 1"), lambda: time.sleep(LONG))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_is_not_swallowed_by_except_exception(kind: Callable[[float], Interrupter]) -> None:
    with pytest.raises(JobTimeout), kind(LONG) as interrupter, contextlib.suppress(Exception):
        interrupted(interrupter, JobTimeout("too long"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_that_was_swallowed_comes_again_when_it_is_asked_for_again(
    kind: Callable[[float], Interrupter],
) -> None:
    def swallow_one() -> None:
        with contextlib.suppress(HandedBack):
            interrupted(interrupter, HandedBack("the worker stops"))
        interrupted(interrupter, HandedBack("the worker stops"))

    with pytest.raises(HandedBack), kind(LONG) as interrupter:
        swallow_one()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_after_the_end_of_the_work_does_nothing(kind: Callable[[float], Interrupter]) -> None:
    with kind(LONG) as interrupter:
        pass

    interrupter.interrupt(FencedOut("too late"))
    time.sleep(0.01)

    assert interrupter.reason is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_at_the_very_end_of_the_work_is_too_late_and_leaves_nothing_armed(
    kind: Callable[[float], Interrupter],
) -> None:
    for _ in range(50):
        interrupter = kind(LONG)
        thread = threading.Thread(target=interrupter.interrupt, args=[FencedOut("at the last moment")])
        with contextlib.suppress(FencedOut), interrupter:
            thread.start()
        interrupter.disarm()
        thread.join()
        for _ in range(100):
            time.sleep(0)

    interrupter.interrupt(FencedOut("much too late"))
    time.sleep(0.01)


def test_each_thread_has_the_interrupter_that_reaches_it() -> None:
    found: list[Interrupter] = []
    thread = threading.Thread(target=lambda: found.append(interrupter_of_this_thread(LONG)))
    thread.start()
    thread.join()

    assert isinstance(found[0], ThreadInterrupter)
    assert isinstance(interrupter_of_this_thread(LONG), SignalInterrupter)


def test_work_may_take_sigalrm_for_itself() -> None:
    rung = threading.Event()
    before = signal.getsignal(signal.SIGALRM)

    def take_it() -> None:
        signal.signal(signal.SIGALRM, lambda *_: rung.set())
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert rung.wait(10)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        interrupted(interrupter, JobTimeout("too long"))

    with pytest.raises(JobTimeout), SignalInterrupter(LONG) as interrupter:
        take_it()

    assert signal.getsignal(signal.SIGALRM) is before


def test_an_alarm_that_was_set_before_is_given_back_with_the_time_that_is_left() -> None:
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, LONG)
        with SignalInterrupter(LONG * 2):
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "it does not ring inside"
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        assert 0 < left <= LONG
        os.kill(os.getpid(), signal.SIGALRM)
        assert rung.wait(10)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_alarm_that_came_due_meanwhile_rings_at_once_when_it_is_given_back() -> None:
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with SignalInterrupter(LONG):
            time.sleep(0.05)
            assert not rung.is_set()
        assert rung.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
