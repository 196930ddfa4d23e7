"""Large families: an end takes a bounded time, and all who wait for it are told in parts, whatever happens between."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from harness import Stack, eventually, execute, one_value, row_of
from jobledger import BaseJob, Connections, JobHandle, JobStatus, Outcome, Reason
from jobledger.control import Verdict
from jobledger.domain.records import Evidence, Runner, Untold
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import moves
from jobledger.lifecycle import children
from jobledger.lifecycle.children import WITH_END, Size, propagate_due
from jobledger.lifecycle.finish import Fail, Settled, announce, complete, settle
from jobledger.maintenance import doctor
from jobledger.maintenance.prune import prune
from jobledger.maintenance.stuck_children import release_stuck_children
from jobledger.worker import run_job
from sample_jobs import Echo, Fails

ME = Runner(worker="tester", host="here", pid=1, version="1")
MANY = WITH_END.children + 30
LONG = WITH_END.steps + 10


@pytest.fixture(scope="module")
def database_url(servers: EmbeddedServers) -> Iterator[str]:
    """One database for all tests of this module, emptied for each."""
    servers.postgres.create_database("propagation", template="template_jobledger")
    yield servers.postgres.url_for("propagation")
    servers.postgres.drop_database("propagation")


@pytest.fixture(autouse=True)
def _empty(connections: Connections) -> None:
    for table in ("job_statuses", "job_propagations"):
        execute(connections, f"DELETE FROM {table}")


class Waits(BaseJob):
    """Waits for others, on a queue of its own."""

    queue = "low"

    def _perform(self, n: int = 0) -> int:
        return n


def family(connections: Connections, count: int = MANY, **options: Any) -> tuple[JobHandle, list[JobHandle]]:
    """A job and those that wait for it, dispatched in a session: no deadline of a dispatch is concerned."""
    with Session(connections.engine) as session, session.begin():
        parent = Echo.dispatch(session=session)
        waiting = Waits.set(**options).dispatch_many([{"n": n} for n in range(count)], after=parent, session=session)
    return parent, waiting


def chain(connections: Connections, length: int = LONG) -> list[JobHandle]:
    """Jobs of which each waits for the one before."""
    with Session(connections.engine) as session, session.begin():
        jobs = [Echo.dispatch(session=session)]
        for _ in range(length):
            jobs.append(Waits.dispatch(after=jobs[-1], session=session))
    return jobs


def completes(connections: Connections, handle: JobHandle) -> Settled:
    """Complete a job as its run does, up to the commit."""
    attempt = claim(connections, handle)
    with connections.transaction() as connection:
        settled = complete(connection, handle.id, attempt, None, Evidence())
    assert settled is not None
    return settled


def fails(connections: Connections, handle: JobHandle) -> Settled:
    attempt = claim(connections, handle)
    with connections.transaction() as connection:
        decision = Fail(Reason.ERROR, {"errors": 1})
        settled = settle(connection, handle.id, attempt, Outcome.ERROR, decision, Evidence())
    assert settled is not None
    return settled


def claim(connections: Connections, handle: JobHandle) -> int:
    with connections.transaction() as connection:
        claimed = moves.claim(connection, handle.id, ME, 30)
    assert claimed is not None
    return claimed.attempt


def statuses(connections: Connections, handles: Sequence[JobHandle]) -> dict[str, int]:
    """How many of these jobs are in each status."""
    sql = "SELECT status, count(*) FROM job_statuses WHERE id = ANY(:ids) GROUP BY status"
    with connections.transaction() as connection:
        rows = connection.execute(sa.text(sql), {"ids": [one.id for one in handles]})
        return dict(rows.tuples().all())


def notes(connections: Connections) -> list[tuple[UUID, UUID, UUID]]:
    sql = "SELECT parent_id, first_child_id, last_child_id FROM job_propagations ORDER BY first_child_id"
    with connections.transaction() as connection:
        return list(connection.execute(sa.text(sql)).tuples())


def pushed(connections: Connections) -> list[str]:
    return [one.decode() for one in connections.redis.lrange("rq:queue:low", 0, -1)]


def tell_all(connections: Connections) -> None:
    """What schedulers do, until nothing is left to be done."""

    def is_told() -> bool:
        propagate_due(connections, 1.0)
        return not notes(connections)

    eventually(is_told, what="all are told")


# -- in the transaction of the end


def test_a_small_family_is_told_in_the_transaction_of_the_end(connections: Connections) -> None:
    parent, waiting = family(connections, 20)

    settled = completes(connections, parent)

    assert [wake.id for wake in settled.wakes] == [one.id for one in waiting]
    assert (statuses(connections, waiting), settled.untold, notes(connections)) == ({"queued": 20}, frozenset(), [])


def test_of_a_large_family_a_part_is_told_and_the_rest_is_noted(connections: Connections) -> None:
    parent, waiting = family(connections)

    settled = completes(connections, parent)

    assert parent.refresh().status is JobStatus.COMPLETED
    assert [wake.id for wake in settled.wakes] == [one.id for one in waiting[: WITH_END.children]]
    assert settled.untold == {parent.id}
    assert statuses(connections, waiting) == {"queued": WITH_END.children, "deferred": 30}
    ((noted, _, last),) = notes(connections)
    assert (noted, last) == (parent.id, waiting[-1].id)


def statements_of_an_end(connections: Connections, head: JobHandle) -> int:
    attempt = claim(connections, head)
    seen: list[str] = []
    with connections.transaction() as connection:
        sa.event.listen(connection, "before_cursor_execute", lambda *given: seen.append(given[2]))
        assert settle(connection, head.id, attempt, Outcome.ERROR, Fail(Reason.ERROR, {"errors": 1}), Evidence())
    return len(seen)


def test_an_end_is_a_bounded_number_of_statements_however_long_the_chain_is(connections: Connections) -> None:
    long, longer = chain(connections, LONG), chain(connections, 3 * LONG)

    assert statements_of_an_end(connections, long[0]) == statements_of_an_end(connections, longer[0])
    assert statuses(connections, longer[1:]) == {"canceled": WITH_END.steps, "deferred": 3 * LONG - WITH_END.steps}


# -- afterwards


def test_the_process_that_wrote_the_end_goes_on(connections: Connections) -> None:
    parent, waiting = family(connections)

    run_job(str(parent.id))
    tell_all(connections)  # a slow machine

    assert statuses(connections, waiting) == {"queued": MANY}
    assert pushed(connections) == [str(one.id) for one in waiting]


def test_a_long_chain_is_canceled_link_by_link(connections: Connections) -> None:
    head, *others = chain(connections)

    announce(connections, fails(connections, head))
    tell_all(connections)

    assert statuses(connections, others) == {"canceled": LONG}
    reasons = [row_of(connections, one).reason for one in others]
    assert reasons[:2] == [f"parent {head.id} failed", f"parent {others[0].id} was canceled"]
    assert reasons[-1] == f"parent {others[-2].id} was canceled"


def test_a_cancel_by_a_person_reaches_all(connections: Connections) -> None:
    head, *others = chain(connections)

    assert head.cancel().is_done
    tell_all(connections)

    assert statuses(connections, others) == {"canceled": LONG}


@pytest.mark.parametrize(("mode", "becomes"), [("cancel", "canceled"), ("run", "queued"), ("hold", "deferred")])
def test_each_child_does_what_it_says_whichever_part_it_is_in(
    connections: Connections, mode: str, becomes: str
) -> None:
    parent, waiting = family(connections, on_parent_failure=mode)

    announce(connections, fails(connections, parent))
    tell_all(connections)

    assert statuses(connections, waiting) == {becomes: MANY}
    assert release_stuck_children(connections) == 0
    if mode == "hold":
        assert parent.retry().is_done
        announce(connections, completes(connections, parent))
        tell_all(connections)
        assert statuses(connections, waiting) == {"queued": MANY}


def test_the_last_of_two_large_parents_releases_their_children(connections: Connections) -> None:
    with Session(connections.engine) as session, session.begin():
        parents = Echo.dispatch_many([{}, {}], session=session)
        waiting = Waits.dispatch_many([{}] * MANY, after=parents, session=session)

    first = completes(connections, parents[0])
    second = completes(connections, parents[1])
    assert statuses(connections, waiting) == {"queued": WITH_END.children, "deferred": 30}
    for settled in (second, first):
        announce(connections, settled)
    tell_all(connections)

    assert statuses(connections, waiting) == {"queued": MANY}
    assert {row_of(connections, one).push_count for one in waiting} == {1}


def test_a_part_that_is_interrupted_is_told_by_the_next_process(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "AFTERWARDS", Size(children=10, steps=1))
    parent, waiting = family(connections)
    completes(connections, parent)

    assert propagate_due(connections, 0.0) == 10
    assert statuses(connections, waiting) == {"queued": WITH_END.children + 10, "deferred": 20}
    monkeypatch.setattr(moves, "release_children", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        propagate_due(connections, 0.0)
    monkeypatch.undo()

    assert propagate_due(connections, 0.0) == 20
    assert statuses(connections, waiting) == {"queued": MANY}
    assert notes(connections) == []


def test_many_schedulers_at_once_tell_each_child_once(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "AFTERWARDS", Size(children=7, steps=3))
    families = [family(connections) for _ in range(3)]
    for parent, _ in families:
        completes(connections, parent)
    heads = [chain(connections) for _ in range(3)]
    for head, *_ in heads:
        fails(connections, head)
    gate = threading.Barrier(4)

    def tell(_: int) -> None:
        gate.wait(10)
        tell_all(connections)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tell, range(4)))

    waiting = [one for _, some in families for one in some]
    assert statuses(connections, waiting) == {"queued": 3 * MANY}
    late = [str(one.id) for _, some in families for one in some[WITH_END.children :]]
    assert sorted(pushed(connections)) == sorted(late), "those of the ends themselves were not announced"
    assert statuses(connections, [one for _, *some in heads for one in some]) == {"canceled": 3 * LONG}


def test_a_locked_child_delays_itself_and_its_own_alone(connections: Connections) -> None:
    parent, waiting = family(connections)
    locked = waiting[-5]
    below = Waits.dispatch(after=locked)
    with Session(connections.engine) as session:
        Waits.dispatch(after=locked, session=session)
        announce(connections, fails(connections, parent))
        eventually(lambda: not propagate_due(connections, 1.0) and len(notes(connections)) == 1, what="the others")

        assert statuses(connections, waiting) == {"canceled": MANY - 1, "deferred": 1}
        assert notes(connections) == [(parent.id, locked.id, locked.id)]
        session.commit()
    tell_all(connections)

    assert statuses(connections, [*waiting, below]) == {"canceled": MANY + 1}
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE status = 'canceled'") == MANY + 2


def test_a_child_that_postgres_refuses_to_move_keeps_none_of_the_others(connections: Connections) -> None:
    parent, waiting = family(connections)
    odd = waiting[-5]
    execute(connections, f"ALTER TABLE job_statuses ADD CONSTRAINT odd CHECK (id <> '{odd.id}' OR status = 'deferred')")
    try:
        announce(connections, completes(connections, parent))
        eventually(lambda: statuses(connections, waiting) == {"queued": MANY - 1, "deferred": 1} or tells(connections))
        assert notes(connections) == [(parent.id, odd.id, odd.id)]
        assert propagate_due(connections, 1.0) == 0, "it is left alone for a while"
    finally:
        execute(connections, "ALTER TABLE job_statuses DROP CONSTRAINT odd")
    execute(connections, "UPDATE job_propagations SET due_at = now()")
    tell_all(connections)

    assert statuses(connections, waiting) == {"queued": MANY}


def tells(connections: Connections) -> bool:
    propagate_due(connections, 0.0)
    return False


# -- meanwhile


@pytest.mark.parametrize("end", [completes, fails])
def test_a_child_that_is_dispatched_meanwhile_waits_for_the_rest_of_its_parents(
    connections: Connections, end: Callable[[Connections, JobHandle], Settled]
) -> None:
    parent, _ = family(connections)
    other = Echo.dispatch()
    end(connections, parent)

    late = Waits.dispatch(after=[parent, other], on_parent_failure="run")
    alone = Waits.dispatch(after=parent, on_parent_failure="run")
    tell_all(connections)

    assert (late.refresh().status, alone.status) == (JobStatus.DEFERRED, JobStatus.QUEUED)
    completes(connections, other)
    assert late.refresh().status is JobStatus.QUEUED


def test_a_child_of_the_previous_version_waits_for_the_rest_of_its_parents(connections: Connections) -> None:
    """Its dispatch knows nothing of notes, and leaves nothing behind for them."""
    parent, _ = family(connections)
    other = Echo.dispatch()
    completes(connections, parent)
    late = Waits.dispatch(after=[parent, other])
    execute(connections, "UPDATE job_dependencies SET is_over = false WHERE child_id = :id", id=late.id)

    tell_all(connections)

    assert late.refresh().status is JobStatus.DEFERRED


def test_a_job_is_not_retried_before_all_were_told_that_it_failed(connections: Connections) -> None:
    parent, waiting = family(connections)
    fails(connections, parent)

    answer = parent.retry()
    tell_all(connections)

    assert answer.verdict is Verdict.REFUSED
    assert "still being told of its end; try again" in answer.message
    assert statuses(connections, waiting) == {"canceled": MANY}
    assert parent.retry().is_done


def test_children_of_a_job_that_the_previous_version_retried_wait_on(connections: Connections) -> None:
    parent, waiting = family(connections)
    fails(connections, parent)
    execute(
        connections,
        "UPDATE job_statuses SET status = 'queued', reason = NULL, finished_at = NULL, errors = 0 WHERE id = :id",
        id=parent.id,
    )

    tell_all(connections)

    assert statuses(connections, waiting) == {"canceled": WITH_END.children, "deferred": 30}
    announce(connections, completes(connections, parent))
    tell_all(connections)
    assert statuses(connections, waiting) == {"canceled": WITH_END.children, "queued": 30}


def test_a_child_that_a_person_has_run_or_canceled_meanwhile_is_left_alone(connections: Connections) -> None:
    parent, waiting = family(connections)
    fails(connections, parent)
    run, canceled = waiting[-1], waiting[-2]
    assert run.retry(by="ann").is_done
    assert canceled.cancel(by="ann").is_done

    tell_all(connections)

    assert run.refresh().status is JobStatus.QUEUED
    assert canceled.refresh().reason == "canceled by ann"


def test_a_job_is_not_pruned_before_all_were_told(connections: Connections) -> None:
    parent, _ = family(connections)
    completes(connections, parent)
    execute(connections, "UPDATE job_statuses SET finished_at = now() - interval '1 year' WHERE id = :id", id=parent.id)

    assert prune(connections) == 0
    tell_all(connections)
    assert prune(connections) == 1


def test_what_is_noted_does_not_count_as_forgotten(connections: Connections) -> None:
    parent, _ = family(connections)
    completes(connections, parent)

    assert release_stuck_children(connections) == 0


def test_a_note_of_a_job_that_is_gone_goes(connections: Connections) -> None:
    with connections.transaction() as connection:
        moves.note_untold(connection, [Untold(UUID(int=7))])

    tell_all(connections)


# -- processes


def test_the_doctor_tells_all(connections: Connections) -> None:
    parent, waiting = family(connections)
    completes(connections, parent)

    mended, failed = doctor.repair(connections)

    assert failed == []
    assert mended["jobs whose parents had ended"] == 30
    assert statuses(connections, waiting) == {"queued": MANY}


def test_a_failed_head_ends_and_a_scheduler_tells_what_its_worker_has_left(
    connections: Connections, system: Stack
) -> None:
    with Session(connections.engine) as session, session.begin():
        head = Fails.dispatch(error="KeyError", session=session)
        waiting = [Waits.dispatch(after=head, session=session)]
        for _ in range(500):
            waiting.append(Waits.dispatch(after=waiting[-1], session=session))
    system.worker("--burst", "default")

    assert head.wait(60).status is JobStatus.FAILED
    system.scheduler()

    eventually(lambda: statuses(connections, waiting) == {"canceled": len(waiting)}, 60, "all are canceled")
    assert notes(connections) == []
