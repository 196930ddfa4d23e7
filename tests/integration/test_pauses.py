"""Pauses of queues and of job types: what they hold, what they let go on, and the order in which it runs then."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from harness import Stack, eventually, one_value
from jobledger import BaseJob, Connections, JobHandle, JobStatus, OptionError, control
from jobledger.domain.records import Evidence, Runner
from jobledger.domain.status import PauseKind
from jobledger.ledger import moves, pauses
from jobledger.lifecycle.finish import complete
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.relay import relay, relay_unpushed
from jobledger.queues import waiting
from jobledger.worker import run_job
from sample_jobs import Echo, Fails, Reports

ME = Runner(worker="tester", host="here", pid=1, version="1")
QUEUE, TYPE = PauseKind.QUEUE, PauseKind.TYPE


class Link(BaseJob):
    """A job of a queue of its own."""

    queue = "low"

    def _perform(self, n: int = 0) -> int:
        return n


def execute(connections: Connections, statement: str) -> None:
    with connections.transaction() as connection:
        connection.exec_driver_sql(statement)


def claim(connections: Connections, handle: JobHandle) -> object:
    with connections.transaction() as connection:
        return moves.claim(connection, handle.id, ME, 30)


def held_by(connections: Connections, handle: JobHandle) -> object:
    return one_value(connections, "SELECT held_by FROM job_statuses WHERE id = :id", id=handle.id)


@pytest.mark.parametrize(("kind", "name"), [(QUEUE, "low"), (TYPE, "Link")])
def test_a_job_that_is_paused_is_held_by_its_next_claim(connections: Connections, kind: PauseKind, name: str) -> None:
    handle, other = Link.dispatch(), Echo.dispatch()
    control.pause(connections, kind, name, "ann", "the server is full")

    assert "held" in run_job(str(handle.id))
    assert claim(connections, other)

    assert handle.refresh().status is JobStatus.QUEUED
    assert held_by(connections, handle) == f"pause:{kind}:{name}"
    assert handle.attempts == []
    assert relay_unpushed(connections) == 0
    assert reconcile(connections, grace_seconds=0.0) == 0

    assert control.resume(connections, kind, name, "ann") == 1
    assert relay(connections) == 1
    run_job(str(handle.id))
    assert handle.refresh().status is JobStatus.COMPLETED


@pytest.mark.parametrize(("kind", "name"), [(QUEUE, "low"), (TYPE, "Link")])
def test_what_is_not_in_redis_is_held_by_the_relay(connections: Connections, kind: PauseKind, name: str) -> None:
    control.pause(connections, kind, name, "ann")
    handles, others = Link.dispatch_many([{}] * 3), Echo.dispatch_many([{}] * 2, queue="high")
    connections.redis.flushall()
    execute(connections, "UPDATE job_statuses SET pushed_at = NULL")

    assert relay(connections) == 2

    assert waiting(connections.redis, "low") == []
    assert len(waiting(connections.redis, "high")) == len(others)
    assert {held_by(connections, one) for one in handles} == {f"pause:{kind}:{name}"}


def test_retries_and_children_obey_a_pause_and_what_runs_goes_on(connections: Connections) -> None:
    parent, retried = Echo.dispatch(), Fails.dispatch(until=2)
    child = Link.dispatch(after=parent)
    run_job(str(retried.id))
    assert claim(connections, parent)
    for kind, name in ((TYPE, "Fails"), (TYPE, "Echo"), (QUEUE, "low")):
        control.pause(connections, kind, name, "ann")

    with connections.transaction() as connection:
        assert complete(connection, parent.id, 1, None, Evidence()) is not None
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE status = 'scheduled'")
    relay(connections)
    run_job(str(child.id))

    assert parent.refresh().status is JobStatus.COMPLETED
    assert held_by(connections, retried) == "pause:type:Fails"
    assert held_by(connections, child) == "pause:queue:low"


def test_held_jobs_are_released_by_priority_and_age(connections: Connections) -> None:
    control.pause(connections, QUEUE, "low", "ann")
    handles = [Link.set(queue="low", priority=priority).dispatch() for priority in (5, 9, 1, 5)]
    for one in reversed(handles):
        assert claim(connections, one) is None
    connections.redis.flushall()

    assert control.resume(connections, QUEUE, "low", "ann") == 4
    relay(connections)

    expected = [handles[number] for number in (2, 0, 3, 1)]
    assert waiting(connections.redis, "low") == [str(one.id) for one in expected]


def test_a_job_of_a_paused_type_in_a_paused_queue_waits_for_both(connections: Connections) -> None:
    handle = Link.dispatch()
    control.pause(connections, QUEUE, "low", "ann")
    control.pause(connections, TYPE, "Link", "ann")
    assert claim(connections, handle) is None

    control.resume(connections, QUEUE, "low", "ann")
    relay(connections)
    assert held_by(connections, handle) == "pause:type:Link"

    control.resume(connections, TYPE, "Link", "ann")
    relay(connections)
    assert claim(connections, handle)


def test_who_paused_first_stands_and_a_pause_that_is_not_there_cannot_end(connections: Connections) -> None:
    assert control.resume(connections, QUEUE, "low", "ann") is None
    control.pause(connections, QUEUE, "low", "ann", "first")

    again = control.pause(connections, QUEUE, "low", "bob", "second")

    assert (again.paused_by, again.reason) == ("ann", "first")
    assert control.paused(connections) == [again]
    assert control.resume(connections, QUEUE, "low", "bob") == 0
    assert control.paused(connections) == []


@pytest.mark.parametrize(("kind", "name"), [(QUEUE, "no such name"), (QUEUE, ""), (TYPE, ""), (TYPE, "a\x00b")])
def test_a_name_that_nothing_can_have_is_refused(connections: Connections, kind: PauseKind, name: str) -> None:
    with pytest.raises(OptionError, match="name"):
        control.pause(connections, kind, name, "ann")


def test_what_a_resume_that_was_interrupted_left_is_released_by_the_relay(connections: Connections) -> None:
    handle = Link.dispatch()
    control.pause(connections, QUEUE, "low", "ann")
    assert claim(connections, handle) is None
    execute(connections, "DELETE FROM pauses")

    assert relay(connections) == 1

    assert claim(connections, handle)


def test_a_claim_that_saw_the_pause_leaves_nothing_behind_its_end(connections: Connections) -> None:
    """The resume waits for a claim that is holding a job at this moment, and releases it."""
    handle = Link.dispatch()
    control.pause(connections, QUEUE, "low", "ann")
    with ThreadPoolExecutor(1) as other, connections.transaction() as first:
        assert moves.claim(first, handle.id, ME, 30) is None
        resumed = other.submit(control.resume, connections, QUEUE, "low", "ann")
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: one_value(connections, waits), what="the resume waits")

    assert resumed.result(10) == 1
    assert held_by(connections, handle) is None


def test_pauses_and_resumes_and_claims_at_once_leave_nothing_held(connections: Connections) -> None:
    handles = Link.dispatch_many([{}] * 60)
    gate = threading.Barrier(3)

    def claim_some(some: list[JobHandle]) -> int:
        gate.wait(10)
        return sum(claim(connections, one) is not None for one in some)

    def flicker() -> None:
        gate.wait(10)
        for _ in range(30):
            control.pause(connections, QUEUE, "low", "ann")
            control.resume(connections, QUEUE, "low", "ann")

    with ThreadPoolExecutor(3) as all_of_them:
        claims = [all_of_them.submit(claim_some, handles[part::2]) for part in range(2)]
        all_of_them.submit(flicker).result(60)
        started = sum(one.result(60) for one in claims)

    with connections.transaction() as connection:
        assert pauses.ended(connection) == []
        held = connection.execute(sa.text("SELECT count(*) FROM job_statuses WHERE held_by IS NOT NULL")).scalar()
        running = connection.execute(sa.text("SELECT count(*) FROM job_statuses WHERE status = 'started'")).scalar()
    assert (held, running) == (0, started)


def test_a_pause_in_a_system_that_works(connections: Connections, system: Stack, tmp_path: Path) -> None:
    """Real workers and a scheduler: what runs goes on, what comes waits, and all of it runs in the end."""
    system.worker()
    system.scheduler()
    running = Reports.dispatch(release_file=str(tmp_path / "release"))
    eventually(lambda: running.refresh().status is JobStatus.STARTED, 60, "the job runs")
    control.pause(connections, QUEUE, "default", "ann")
    held = [*Echo.dispatch_many([{}] * 5), Fails.dispatch(until=2)]
    other = Echo.dispatch(queue="high")

    (tmp_path / "release").touch()
    assert running.wait(30).status is other.wait(30).status is JobStatus.COMPLETED
    eventually(lambda: all(held_by(connections, one) == "pause:queue:default" for one in held), 30, "all are held")

    assert control.resume(connections, QUEUE, "default", "ann") == len(held)
    assert {one.wait(30).status for one in held} == {JobStatus.COMPLETED}
