"""Jobs that wait for others: released by the last parent, canceled with one that fails, whoever moves at once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from harness import eventually, one_value
from jobledger import BaseJob, Connections, JobHandle, JobStatus, Outcome, ParentNotFound, Reason
from jobledger.domain.records import Evidence, Runner
from jobledger.ledger import moves
from jobledger.lifecycle.children import propagate_due
from jobledger.lifecycle.finish import Fail, Settled, announce, complete, settle
from jobledger.maintenance.relay import relay, relay_due
from jobledger.worker import run_job
from sample_jobs import Echo, Fails

pytestmark = pytest.mark.one_database  # each looks at jobs of its own

ME = Runner(worker="tester", host="here", pid=1, version="1")


class Collect(BaseJob):
    """Waits for others, on a queue of its own."""

    queue = "low"

    def _perform(self, n: int = 0) -> int:
        return n


def run(handle: JobHandle) -> JobHandle:
    with contextlib.suppress(ValueError, KeyError):  # as Fails raises
        run_job(str(handle.id))
    return handle.refresh()


def pushed(connections: Connections) -> list[str]:
    return [one.decode() for one in connections.redis.lrange("rq:queue:low", 0, -1)]


def waiting_parents(connections: Connections, handle: JobHandle) -> int:
    return int(one_value(connections, "SELECT waiting_parents FROM job_statuses WHERE id = :id", id=handle.id))


# -- one after the other


def test_a_child_waits_for_its_parent(connections: Connections) -> None:
    parent = Echo.dispatch()

    child = Collect.dispatch(after=parent)

    assert child.status is JobStatus.DEFERRED
    assert waiting_parents(connections, child) == 1
    assert pushed(connections) == []
    assert run(child).status is JobStatus.DEFERRED


def test_the_end_of_its_parent_queues_it(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Collect.dispatch(after=parent)

    run(parent)

    assert child.refresh().status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]
    assert run(child).status is JobStatus.COMPLETED


def test_the_last_of_several_parents_queues_it(connections: Connections) -> None:
    parents = Echo.dispatch_many([{}, {}, {}])
    child = Collect.dispatch(after=parents)

    seen = []
    for parent in reversed(parents):
        run(parent)
        seen.append((child.refresh().status, waiting_parents(connections, child)))

    assert seen == [(JobStatus.DEFERRED, 2), (JobStatus.DEFERRED, 1), (JobStatus.QUEUED, 0)]
    assert pushed(connections) == [str(child.id)]


def test_a_parent_may_be_named_by_its_id_and_twice(connections: Connections) -> None:
    parent = Echo.dispatch()

    child = Collect.dispatch(after=[parent, parent.id, str(parent.id)])

    assert waiting_parents(connections, child) == 1


def test_many_children_wait_for_one_parent(connections: Connections) -> None:
    parent = Echo.dispatch()
    children = Collect.dispatch_many([{"n": n} for n in range(3)], after=parent)

    run(parent)

    assert {child.refresh().status for child in children} == {JobStatus.QUEUED}
    assert pushed(connections) == [str(child.id) for child in children]


def test_a_chain_runs_link_by_link(connections: Connections) -> None:
    first = Echo.dispatch()
    second = Collect.dispatch(after=first)
    third = Collect.dispatch(after=second)

    run(first)
    assert (second.refresh().status, third.refresh().status) == (JobStatus.QUEUED, JobStatus.DEFERRED)
    run(second)
    assert third.refresh().status is JobStatus.QUEUED


def test_a_retry_of_the_parent_releases_nobody(connections: Connections) -> None:
    parent = Fails.dispatch(until=2)
    child = Collect.dispatch(after=parent)

    assert run(parent).status is JobStatus.SCHEDULED
    assert child.refresh().status is JobStatus.DEFERRED

    eventually(lambda: relay_due(connections), what="the retry is due")
    assert run(parent).status is JobStatus.COMPLETED
    assert child.refresh().status is JobStatus.QUEUED


# -- parents that have ended


def test_a_parent_that_has_completed_is_not_waited_for(connections: Connections) -> None:
    parent = run(Echo.dispatch())

    child = Collect.dispatch(after=parent)

    assert child.status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]


def test_of_several_parents_those_that_have_not_completed_are_waited_for(connections: Connections) -> None:
    done, other = run(Echo.dispatch()), Echo.dispatch()

    child = Collect.dispatch(after=[done, other])

    assert waiting_parents(connections, child) == 1
    run(other)
    assert child.refresh().status is JobStatus.QUEUED


def test_a_parent_that_has_failed_cancels_at_once(connections: Connections) -> None:
    parent = run(Fails.dispatch(error="KeyError"))

    child = Collect.dispatch(after=[Echo.dispatch(), parent])

    assert child.status is JobStatus.CANCELED
    assert child.refresh().reason == f"parent {parent.id} failed"
    assert pushed(connections) == []


def test_a_parent_that_was_canceled_cancels_at_once(connections: Connections) -> None:
    failed = run(Fails.dispatch(error="KeyError"))
    parent = Collect.dispatch(after=failed)

    child = Collect.dispatch(after=parent)

    assert child.refresh().reason == f"parent {parent.id} was canceled"


def test_a_parent_that_nobody_knows_refuses_the_dispatch(connections: Connections) -> None:
    known, unknown = Echo.dispatch(), uuid4()
    before = one_value(connections, "SELECT count(*) FROM job_statuses")

    with pytest.raises(ParentNotFound, match=str(unknown)):
        Collect.dispatch(after=[known, unknown])
    assert one_value(connections, "SELECT count(*) FROM job_statuses") == before
    assert not one_value(connections, "SELECT has_children FROM job_statuses WHERE id = :id", id=known.id)


# -- parents that fail


def test_a_parent_that_fails_cancels_its_descendants_with_the_reason(connections: Connections) -> None:
    parent = Fails.dispatch(error="KeyError")
    child = Collect.dispatch(after=parent)
    grandchildren = Collect.dispatch_many([{}, {}], after=child)
    great_grandchild = Collect.dispatch(after=grandchildren)
    bystander = Collect.dispatch(after=Echo.dispatch())

    assert run(parent).status is JobStatus.FAILED

    assert child.refresh().reason == f"parent {parent.id} failed"
    for grandchild in grandchildren:
        assert grandchild.refresh().reason == f"parent {child.id} was canceled"
    assert great_grandchild.refresh().reason in {f"parent {one.id} was canceled" for one in grandchildren}
    canceled = (child, *grandchildren, great_grandchild)
    assert {one.status for one in canceled} == {JobStatus.CANCELED}
    assert bystander.refresh().status is JobStatus.DEFERRED
    assert pushed(connections) == []


def test_a_child_canceled_by_one_parent_stays_so_when_the_other_completes(connections: Connections) -> None:
    bad, good = Fails.dispatch(error="KeyError"), Echo.dispatch()
    child = Collect.dispatch(after=[bad, good])

    run(bad)
    assert run(good).status is JobStatus.COMPLETED

    assert child.refresh().status is JobStatus.CANCELED


def test_a_parent_whose_first_attempt_fails_cancels_nobody(connections: Connections) -> None:
    parent = Fails.dispatch(until=2)
    child = Collect.dispatch(after=parent)

    run(parent)

    assert child.refresh().status is JobStatus.DEFERRED


# -- children with a delay


def test_a_delayed_child_waits_for_its_time_after_its_parent(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Collect.set(after=parent).dispatch_in(3600)

    run(parent)

    assert child.refresh().status is JobStatus.SCHEDULED
    assert pushed(connections) == []
    with connections.transaction() as connection:
        connection.execute(
            sa.text("UPDATE job_statuses SET available_at = now() - interval '1 s' WHERE id = :id"), {"id": child.id}
        )
    relay(connections)
    assert child.refresh().status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]


def test_a_delay_that_passed_while_the_parent_ran_is_over(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Collect.set(after=parent).dispatch_in(timedelta(microseconds=1))

    run(parent)

    assert child.refresh().status is JobStatus.QUEUED


# -- at the same moment


def claim(connections: Connections, handle: JobHandle) -> None:
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, ME, 30)


def finish(connection: Connection, handle: JobHandle) -> Settled:
    settled = complete(connection, handle.id, 1, None, Evidence())
    assert settled is not None
    return settled


def finish_and_push(connections: Connections, handle: JobHandle) -> None:
    """What the run of a job does at its end."""
    with connections.transaction() as connection:
        settled = finish(connection, handle)
    announce(connections, settled)


def fail_and_push(connections: Connections, handle: JobHandle) -> None:
    with connections.transaction() as connection:
        settled = settle(connection, handle.id, 1, Outcome.ERROR, Fail(Reason.ERROR, {"errors": 1}), Evidence())
    announce(connections, settled)


def tell_all(connections: Connections) -> None:
    """What schedulers do: parents that ended at the same moment may have left children to them."""

    def is_told() -> bool:
        propagate_due(connections, 1.0)
        return not one_value(connections, "SELECT count(*) FROM job_propagations")

    eventually(is_told, what="all children are told")


def waits_for(connections: Connections, holder: Connection) -> Callable[[], bool]:
    """Whether another session waits for a lock of this one."""
    pid = holder.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    sql = "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
    return lambda: bool(one_value(connections, sql, pid=pid))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def together(threads: ThreadPoolExecutor, *actions: Callable[[], Any]) -> list[Any]:
    """Do them at the same moment, each in a thread: what they returned, or what one of them raised."""
    gate = threading.Barrier(len(actions))

    def act(action: Callable[[], Any]) -> Any:
        gate.wait(10)
        return action()

    return [future.result(30) for future in [threads.submit(act, action) for action in actions]]


def test_a_last_parent_that_ends_while_the_other_is_ending_releases_the_child(
    connections: Connections, threads: ThreadPoolExecutor
) -> None:
    one, other = Echo.dispatch(), Echo.dispatch()
    child = Collect.dispatch(after=[one, other])
    claim(connections, one)
    claim(connections, other)

    with connections.transaction() as connection:
        settled = finish(connection, one)
        threads.submit(finish_and_push, connections, other).result(30)
        assert other.refresh().status is JobStatus.COMPLETED, "it waits for nobody"
    announce(connections, settled)
    tell_all(connections)

    assert child.refresh().status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]


def test_two_last_parents_that_end_at_the_same_moment_release_the_child_once(
    connections: Connections, threads: ThreadPoolExecutor
) -> None:
    for _ in range(50):
        one, other = Echo.dispatch_many([{}, {}])
        child = Collect.dispatch(after=[one, other])
        claim(connections, one)
        claim(connections, other)

        together(threads, *[partial(finish_and_push, connections, parent) for parent in (one, other)])
        tell_all(connections)

        assert child.refresh().status is JobStatus.QUEUED
        assert pushed(connections).count(str(child.id)) == 1


def test_parents_with_the_same_children_that_end_at_the_same_moment_do_not_deadlock(
    connections: Connections, threads: ThreadPoolExecutor
) -> None:
    for _ in range(10):
        parents = Echo.dispatch_many([{}, {}, {}])
        children = [Collect.dispatch(after=parents[:: (-1) ** n]) for n in range(6)]
        for parent in parents:
            claim(connections, parent)

        together(threads, *[partial(finish_and_push, connections, parent) for parent in parents])
        tell_all(connections)

        assert {child.refresh().status for child in children} == {JobStatus.QUEUED}


def test_a_parent_that_completes_while_the_other_fails_leaves_the_child_canceled(
    connections: Connections, threads: ThreadPoolExecutor
) -> None:
    for _ in range(20):
        good, bad = Echo.dispatch_many([{}, {}])
        child = Collect.dispatch(after=[good, bad])
        claim(connections, good)
        claim(connections, bad)

        together(threads, partial(finish_and_push, connections, good), partial(fail_and_push, connections, bad))
        tell_all(connections)

        assert child.refresh().reason == f"parent {bad.id} failed"


def test_a_child_dispatched_while_its_parent_is_ending_is_queued_at_once(
    connections: Connections, threads: ThreadPoolExecutor
) -> None:
    parent = Echo.dispatch()
    claim(connections, parent)

    with connections.transaction() as connection:
        finish(connection, parent)
        dispatched = threads.submit(Collect.dispatch, after=parent)
        eventually(waits_for(connections, connection), what="the dispatch waits for the end of the parent")
    child = dispatched.result(30)

    assert child.status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]


def test_a_parent_that_ends_while_a_child_is_being_dispatched_releases_it(
    connections: Connections, threads: ThreadPoolExecutor
) -> None:
    parent = Echo.dispatch()
    claim(connections, parent)

    with sa.orm.Session(connections.engine) as session:
        child = Collect.dispatch(after=parent, session=session)
        ended = threads.submit(finish_and_push, connections, parent)
        eventually(waits_for(connections, session.connection()), what="the parent waits for the dispatch")
        session.commit()
    ended.result(30)

    assert child.status is JobStatus.DEFERRED
    assert child.refresh().status is JobStatus.QUEUED
    assert pushed(connections) == [str(child.id)]


@pytest.mark.parametrize("end", [finish_and_push, fail_and_push])
def test_a_child_dispatched_at_the_moment_its_parent_ends_is_never_forgotten(
    connections: Connections, threads: ThreadPoolExecutor, end: Callable[[Connections, JobHandle], None]
) -> None:
    for _ in range(30):
        parent = Echo.dispatch()
        claim(connections, parent)

        _, child = together(threads, partial(end, connections, parent), partial(Collect.dispatch, after=parent))

        expected = JobStatus.QUEUED if end is finish_and_push else JobStatus.CANCELED
        assert child.refresh().status is expected
        assert pushed(connections).count(str(child.id)) == (expected is JobStatus.QUEUED)
