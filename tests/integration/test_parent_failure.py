"""What becomes of a job when one that it waits for fails or is canceled: `on_parent_failure`."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import one_value
from jobledger import BaseJob, Connections, JobDefinitionError, JobHandle, JobStatus, OptionError
from jobledger.control import Verdict
from jobledger.maintenance.expire import expire
from jobledger.maintenance.prune import prune
from jobledger.maintenance.stuck_children import release_stuck_children
from jobledger.worker import run_job
from sample_jobs import Echo, Fails

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


class RunsAnyway(BaseJob):
    """Waits for the end of others, however they end; on a queue of its own."""

    queue = "low"
    on_parent_failure = "run"

    def _perform(self, n: int = 0) -> int:
        return n


def run(handle: JobHandle) -> JobHandle:
    with contextlib.suppress(KeyError):  # as Fails raises
        run_job(str(handle.id))
    return handle.refresh()


def execute(connections: Connections, statement: str) -> None:
    with connections.transaction() as connection:
        connection.exec_driver_sql(statement)


def pushed(connections: Connections) -> list[str]:
    return [one.decode() for one in connections.redis.lrange("rq:queue:low", 0, -1)]


def fail(handle: JobHandle) -> None:
    assert run(handle).status is JobStatus.FAILED


def cancel(handle: JobHandle) -> None:
    assert handle.cancel().is_done


def let_expire(handle: JobHandle) -> None:
    connections = handle._connections
    execute(connections, f"UPDATE job_statuses SET expires_at = now() WHERE id = '{handle.id}'")
    assert expire(connections) == 1


ENDS: list[Callable[[JobHandle], None]] = [fail, cancel, let_expire]


@pytest.mark.parametrize("end", ENDS)
def test_a_child_that_runs_anyway_is_queued_when_its_parent_ends(
    connections: Connections, end: Callable[[JobHandle], None]
) -> None:
    parent, other = Fails.dispatch(error="KeyError"), Echo.dispatch()
    child, patient = RunsAnyway.dispatch(after=parent), RunsAnyway.dispatch(after=[parent, other])

    end(parent)

    assert child.refresh().status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]
    assert patient.refresh().status is JobStatus.DEFERRED
    run(other)
    assert run(patient).status is JobStatus.COMPLETED


@pytest.mark.parametrize("end", ENDS)
def test_a_held_child_waits_until_its_parent_was_retried_and_completes(
    connections: Connections, end: Callable[[JobHandle], None]
) -> None:
    parent = Fails.dispatch(error="KeyError", until=2)
    child = Echo.dispatch(after=parent, on_parent_failure="hold")

    end(parent)
    assert child.refresh().status is JobStatus.DEFERRED
    assert release_stuck_children(connections) == 0

    assert parent.retry().is_done
    execute(connections, f"UPDATE job_statuses SET payload = payload || '{{\"until\": 0}}' WHERE id = '{parent.id}'")
    assert run(parent).status is JobStatus.COMPLETED
    assert child.refresh().status is JobStatus.QUEUED


def test_a_person_runs_or_cancels_a_held_child(connections: Connections) -> None:
    parent = Fails.dispatch(error="KeyError")
    one, other = Echo.dispatch_many([{}, {}], after=parent, on_parent_failure="hold")
    waits = one.retry()
    assert (waits.verdict, waits.message) == (Verdict.REFUSED, "it waits for its parents")
    fail(parent)

    assert one.retry(by="ann").is_done
    assert other.cancel(by="ann").is_done

    assert run(one).status is JobStatus.COMPLETED
    assert other.refresh().reason == "canceled by ann"


def test_what_waits_for_a_canceled_child_goes_its_own_way(connections: Connections) -> None:
    parent = Fails.dispatch(error="KeyError")
    child = Echo.dispatch(after=parent)
    canceled, held = Echo.dispatch(after=child), Echo.dispatch(after=child, on_parent_failure="hold")
    runs = RunsAnyway.dispatch(after=child)

    fail(parent)

    assert child.refresh().status is canceled.refresh().status is JobStatus.CANCELED
    assert held.refresh().status is JobStatus.DEFERRED
    assert run(runs).status is JobStatus.COMPLETED


def test_two_parents_that_are_canceled_together_are_counted_as_two(connections: Connections) -> None:
    first = Echo.dispatch()
    parents = Echo.dispatch_many([{}, {}], after=first)
    child = RunsAnyway.dispatch(after=parents)

    first.cancel()

    assert child.refresh().status is JobStatus.QUEUED


def test_a_parent_that_fails_and_completes_in_the_end_is_counted_once(connections: Connections) -> None:
    parent, other = Fails.dispatch(error="KeyError", until=2), Echo.dispatch()
    child = RunsAnyway.dispatch(after=[parent, other])
    fail(parent)
    assert parent.retry().is_done

    assert run(parent).status is JobStatus.COMPLETED

    assert child.refresh().status is JobStatus.DEFERRED
    run(other)
    assert child.refresh().status is JobStatus.QUEUED


def test_parents_that_did_not_complete_before_the_dispatch_count_in_the_same_way(connections: Connections) -> None:
    dead, alive = Fails.dispatch(error="KeyError", until=2), Echo.dispatch()
    fail(dead)

    runs, waits = RunsAnyway.dispatch(after=dead), RunsAnyway.dispatch(after=[dead, alive])
    held = Echo.dispatch(after=dead, on_parent_failure="hold")
    canceled = Echo.dispatch(after=dead)

    assert (runs.status, waits.status, held.status, canceled.status) == (
        JobStatus.QUEUED, JobStatus.DEFERRED, JobStatus.DEFERRED, JobStatus.CANCELED,
    )  # fmt: skip
    assert dead.retry().is_done
    assert run(dead).status is JobStatus.COMPLETED
    assert (waits.refresh().status, held.refresh().status) == (JobStatus.DEFERRED, JobStatus.QUEUED)
    run(alive)
    assert waits.refresh().status is JobStatus.QUEUED


def test_a_child_that_was_forgotten_is_let_go_as_it_says(connections: Connections) -> None:
    parent = Echo.dispatch()
    runs, held = RunsAnyway.dispatch(after=parent), Echo.dispatch(after=parent, on_parent_failure="hold")
    execute(
        connections,
        f"UPDATE job_statuses SET status = 'failed', reason = 'error', finished_at = now() WHERE id = '{parent.id}'",
    )

    assert release_stuck_children(connections) == 1

    assert (runs.refresh().status, held.refresh().status) == (JobStatus.QUEUED, JobStatus.DEFERRED)


def test_a_parent_is_not_pruned_while_a_child_is_held(connections: Connections) -> None:
    parent, nobodys = Echo.dispatch(), Echo.dispatch()
    child = Echo.dispatch(after=parent, on_parent_failure="hold")
    for one in (parent, nobodys):
        one.cancel()
    execute(
        connections,
        f"UPDATE job_statuses SET finished_at = now() - interval '1 year' WHERE id IN ('{parent.id}', '{nobodys.id}')",
    )

    prune(connections)

    count = "SELECT count(*) FROM job_statuses WHERE id = :id"
    assert [one_value(connections, count, id=one.id) for one in (parent, nobodys)] == [1, 0]
    child.cancel()
    prune(connections)
    assert one_value(connections, count, id=parent.id) == 0


def test_parents_that_end_in_different_ways_at_the_same_moment_do_not_deadlock(connections: Connections) -> None:
    for _ in range(15):
        bad, good = Echo.dispatch_many([{}, {}])
        children = [
            (RunsAnyway if number % 2 else Echo).dispatch(after=[bad, good][:: (-1) ** number]) for number in range(8)
        ]
        gate = threading.Barrier(2)

        def end(job: JobHandle, how: Callable[[JobHandle], object], gate: threading.Barrier = gate) -> None:
            gate.wait(10)
            how(job)

        with ThreadPoolExecutor(2) as both:
            for ended in [both.submit(end, bad, cancel), both.submit(end, good, cancel)]:
                ended.result(30)

        assert {one.refresh().status for one in children[1::2]} == {JobStatus.QUEUED}
        assert {one.refresh().status for one in children[0::2]} == {JobStatus.CANCELED}


def test_what_makes_no_sense_is_refused(connections: Connections) -> None:
    with pytest.raises(OptionError, match='"cancel", "run" or "hold"'):
        Echo.dispatch(on_parent_failure="sulk")
    with pytest.raises(JobDefinitionError, match="on_parent_failure='sulk'"):
        type("Sulks", (BaseJob,), {"on_parent_failure": "sulk", "_perform": lambda self: None})
