"""The alarm that interrupts a job: real signals, in this process."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from jobledger.domain.endings import FencedOut, HandedBack, JobTimeout
from jobledger.worker.interrupts import Alarm

LONG = 60.0


@pytest.fixture(autouse=True)
def _leaves_no_alarm_behind() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    after = signal.signal(signal.SIGALRM, before)
    assert (left, after) == ((0.0, 0.0), before)


def work() -> None:
    """Work until interrupted."""
    time.sleep(LONG)


def test_a_job_that_ends_in_time_is_left_alone() -> None:
    with Alarm(LONG) as alarm:
        pass

    assert not alarm.is_over
    assert 0 < alarm.left_seconds <= LONG


def test_a_job_is_interrupted_when_its_time_is_up() -> None:
    started = time.monotonic()
    with pytest.raises(JobTimeout, match=r"longer than its timeout of 0\.05 s"), Alarm(0.05) as alarm:
        work()

    assert 0.05 <= time.monotonic() - started < 10
    assert alarm.is_over
    assert alarm.left_seconds == 0


def test_an_interrupt_is_not_swallowed_by_except_exception() -> None:
    with pytest.raises(JobTimeout), Alarm(0.05), contextlib.suppress(Exception):
        work()


def test_an_interrupt_that_is_swallowed_comes_again() -> None:
    def work_on() -> None:
        with contextlib.suppress(JobTimeout):
            work()
        work()

    with pytest.raises(JobTimeout), Alarm(0.05):
        work_on()


def test_another_thread_interrupts_with_a_reason() -> None:
    def interrupted_work() -> None:
        with Alarm(LONG) as alarm:
            threading.Thread(target=alarm.interrupt, args=[FencedOut("attempt 1")]).start()
            work()

    with pytest.raises(FencedOut, match="attempt 1"):
        interrupted_work()


def test_an_interrupt_that_was_swallowed_comes_again_when_it_is_asked_for_again() -> None:
    swallowed = threading.Event()

    def interrupt_twice(alarm: Alarm) -> None:
        alarm.interrupt(HandedBack("the worker stops"))
        assert swallowed.wait(10)
        alarm.interrupt(HandedBack("the worker stops"))

    def stubborn_work() -> None:
        with Alarm(LONG) as alarm:
            thread = threading.Thread(target=interrupt_twice, args=[alarm])
            with contextlib.suppress(HandedBack):
                thread.start()
                work()
            swallowed.set()
            work()

    with pytest.raises(HandedBack):
        stubborn_work()


def test_a_disarmed_alarm_interrupts_nothing_and_may_be_left() -> None:
    with Alarm(LONG) as alarm:
        alarm.disarm()
        alarm.interrupt(HandedBack("too late"))
        alarm.disarm()

    assert isinstance(alarm.reason, HandedBack)


def test_an_interrupt_after_the_end_of_the_job_does_nothing() -> None:
    with Alarm(LONG) as alarm:
        pass

    alarm.interrupt(FencedOut("too late"))


def test_the_alarm_of_whoever_set_one_before_is_given_back_with_the_time_that_is_left() -> None:
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, LONG)
        with Alarm(LONG * 2):
            pass
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        assert 0 < left <= LONG
        signal.raise_signal(signal.SIGALRM)
        assert rung.is_set()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_alarm_that_came_due_meanwhile_rings_at_once_when_it_is_given_back() -> None:
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(JobTimeout), Alarm(0.05):
            work()
        assert rung.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
