"""Times of recovery, worked out from planted histories; the fire times of a schedule; the supervisor's decisions."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet import RESTART_SECONDS, Slot, next_step
from recovery import AFTERMATH_SECONDS, ASKED_IN_AN_OUTAGE, ASKED_TO_END, recoveries, requeues, stops, takeovers
from servers import with_port
from ticks import compare

Event = dict[str, Any]


def began(at: float, fault: str, *victims: str) -> Event:
    return {"at": at, "event": "fault_begun", "fault": fault, "number": 1, "victims": list(victims)}


def healed(at: float, fault: str) -> Event:
    return {"at": at, "event": "fault_healed", "fault": fault, "number": 1}


def started(at: float, job: str) -> Event:
    return {"at": at, "event": "started", "id": job}


def accepted(at: float, *jobs: str) -> list[Event]:
    return [{"at": at, "event": "dispatch_accepted", "id": job} for job in jobs]


def test_a_victim_is_timed_until_its_next_start() -> None:
    events = [started(1, "a"), started(1, "b"), began(2, "F2", "a"), started(3, "b"), started(7.5, "a")]
    assert list(recoveries(events)) == [("worker tree killed -> running again", 5.5)]


def test_a_victim_that_never_starts_again_has_no_time() -> None:
    assert list(recoveries([started(1, "a"), began(2, "F1", "a")])) == []


def test_an_outage_is_timed_from_its_healing_to_the_next_start_if_jobs_wait() -> None:
    jobs = [str(number) for number in range(10)]
    events = [*accepted(0, *jobs), began(1, "F15"), healed(4, "F15"), started(6, "0")]
    assert list(recoveries(events)) == [("Postgres accepts again -> next start", 2.0)]
    idle = [*accepted(0, "0"), started(0.5, "0"), began(1, "F15"), healed(4, "F15"), started(60, "1")]
    assert list(recoveries(idle)) == [], "nothing waited to be started"


def test_the_end_is_timed() -> None:
    assert list(recoveries([{"at": 5, "event": "quiet"}, {"at": 9, "event": "drained"}])) == [
        ("all healed -> drained", 4)
    ]


def test_a_takeover_is_timed_until_anybody_sweeps() -> None:
    events = [began(10, "F8"), began(20, "F1"), began(30, "F6")]
    assert list(takeovers(events, [9.0, 12.0, 40.0])) == [
        ("scheduler killed -> next sweep", 2.0),
        ("scheduler killed -> next sweep", 10.0),
    ]


def test_missing_and_doubled_fire_times_are_found() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)

    def second(number: int) -> datetime:
        return begin + timedelta(seconds=number)

    seen = Counter({second(1): 1, second(2): 2, second(4): 1})
    missing, doubled = compare(begin, second(4), seen)
    assert missing == [second(3)]
    assert doubled == [second(2)]


def slot(**values: Any) -> Slot:
    return Slot("worker-0", ["true"], {}, **values)


PROCESS: Any = object()


@pytest.mark.parametrize(
    ("one", "code", "step"),
    [
        (slot(), None, "start"),
        (slot(process=PROCESS), None, "leave"),
        (slot(process=PROCESS), 0, "note its end"),
        (slot(process=PROCESS), -9, "note its end"),
        (slot(process=PROCESS, ended_at=100.0 - RESTART_SECONDS / 2), -9, "leave"),
        (slot(process=PROCESS, ended_at=100.0 - RESTART_SECONDS), -9, "start"),
        (slot(process=PROCESS, ended_at=0.0, retired=True), 0, "leave"),
        (slot(process=PROCESS, retired=True), 0, "note its end"),
        (slot(retired=True), None, "leave"),
    ],
)
def test_the_supervisor_restarts_what_ended_after_a_pause_unless_it_is_retired(
    one: Slot, code: int | None, step: str
) -> None:
    assert next_step(one, code, 100.0) == step


def test_the_port_of_a_url_is_replaced_and_nothing_else() -> None:
    assert with_port("redis://:p:1@127.0.0.1:6379/0", 7) == "redis://:p:1@127.0.0.1:7/0"
    assert with_port("postgresql+psycopg2://u:p@h:5432/d", 7) == "postgresql+psycopg2://u:p@h:7/d"


def test_a_victim_is_queued_again_when_any_worker_could_take_it() -> None:
    events = [
        {"at": 10.0, "event": "fault_begun", "fault": "F1", "victims": ["a", "b"]},
        {"at": 11.0, "event": "started", "id": "b"},
    ]
    moves = [
        {"job_id": "a", "now": "queued", "at": 9.0},
        {"job_id": "a", "now": "scheduled", "at": 12.0},
        {"job_id": "a", "now": "queued", "at": 14.5},
        {"job_id": "b", "now": "completed", "at": 12.0},
    ]

    assert list(requeues(events, moves)) == [("work-horse killed -> queued again", 4.5)]


def canceled(at: float, job: str, *, requested: bool = True) -> Event:
    return {"at": at, "event": "canceled", "id": job, "done": not requested, "requested": requested}


END = {"job_id": "a", "now": "canceled", "at": 16.0}


def test_a_cancel_is_timed_from_its_answer_to_the_end_of_the_job() -> None:
    moves = [{"job_id": "a", "now": "started", "at": 9.0}, END, {"job_id": "b", "now": "completed", "at": 14.0}]
    events = [canceled(10, "a"), canceled(11, "b"), canceled(12, "c"), canceled(13, "a", requested=False)]
    assert list(stops(events, moves)) == [(ASKED_TO_END, 6.0), (ASKED_TO_END, 3.0)]


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ([began(12, "F15"), healed(13, "F15")], ASKED_IN_AN_OUTAGE),
        ([began(12, "F15")], ASKED_IN_AN_OUTAGE),
        ([began(1, "F15"), healed(11 - AFTERMATH_SECONDS, "F15")], ASKED_IN_AN_OUTAGE),
        ([began(12, "F2", "b", "a"), healed(13, "F2")], ASKED_IN_AN_OUTAGE),
        ([began(-9, "F15"), healed(9 - AFTERMATH_SECONDS, "F15")], ASKED_TO_END),
        ([began(17, "F15"), healed(18, "F15")], ASKED_TO_END),
        ([began(12, "F2", "b"), healed(13, "F2")], ASKED_TO_END),
        ([began(12, "F11"), healed(13, "F11")], ASKED_TO_END),
    ],
)
def test_only_a_fault_that_hits_the_job_explains_that_its_cancel_takes_longer(fault: list[Event], name: str) -> None:
    assert list(stops([*fault, canceled(10, "a")], [END])) == [(name, 6.0)]


def test_a_job_that_was_canceled_as_it_ran_does_not_make_up_for_one_that_waits() -> None:
    jobs = [str(number) for number in range(10)]
    stopped = [
        one for job in ("x", "y", "z", "u", "v") for one in (*accepted(0, job), started(1, job), canceled(1, job))
    ]
    events = [*accepted(0, *jobs), *stopped, began(1, "F15"), healed(4, "F15"), started(6, "0")]
    assert list(recoveries(events)) == [("Postgres accepts again -> next start", 2.0)]
