"""The run that log lines belong to: for a context, or for all of a process that was made for it."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jobledger.observe import log_run
from jobledger.observe.log_run import LoggedRun, LogTail, current_run


def a_run(*, whole_process: bool = False) -> LoggedRun:
    return LoggedRun("id", "Sample", 2, "etl", LogTail(), whole_process=whole_process)


def in_a_thread(function: Callable[[], Any]) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def test_a_run_is_there_until_its_context_ends() -> None:
    assert current_run() is None
    with a_run() as run:
        assert current_run() is run
    assert current_run() is None


def test_an_error_ends_the_context_too() -> None:
    with pytest.raises(ValueError, match="job"), a_run():
        raise ValueError("of the job")

    assert current_run() is None


def test_coroutines_and_what_they_send_to_threads_see_the_run() -> None:
    async def job() -> tuple[LoggedRun | None, LoggedRun | None]:
        return current_run(), await asyncio.to_thread(current_run)

    with a_run() as run:
        assert asyncio.run(job()) == (run, run)


def test_another_thread_of_a_process_that_lives_on_does_not() -> None:
    with a_run():
        assert in_a_thread(current_run) is None


def test_a_process_for_one_run_is_its_own_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_run._process, "run", None)
    with a_run(whole_process=True) as run:
        assert in_a_thread(current_run) is run

    assert current_run() is run


def test_the_duration_grows_until_the_end_and_stays() -> None:
    run = a_run()
    started = run.fields()
    while run.fields()["duration_seconds"] == started["duration_seconds"]:
        os.sched_yield()
    run.ended("completed")
    ended = run.fields()
    deadline = threading.Event()
    deadline.wait(0.01)

    assert started["status"] == "started"
    assert ended == {
        "job_id": "id",
        "job_type": "Sample",
        "attempt": 2,
        "queue": "etl",
        "duration_seconds": ended["duration_seconds"],
        "status": "completed",
    }
    assert started["duration_seconds"] < ended["duration_seconds"] == run.fields()["duration_seconds"]
