"""Many jobs at once: what a filter selects and was there at one moment, batch by batch, and nothing newer."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from harness import execute, one_value
from jobledger import Connections, JobHandle, JobStatus, OptionError, Unique, control
from jobledger.connections.locks import LockPatience
from jobledger.control import Answer, Verdict
from jobledger.domain.records import Runner, Untold
from jobledger.ledger import moves
from jobledger.ledger.queries import Filter
from jobledger.maintenance.relay import relay_due
from jobledger.queues import waiting
from jobledger.worker import run_job
from sample_jobs import Echo, Fails

ME = Runner(worker="tester", host="here", pid=1, version="1")


def claim(connections: Connections, handle: JobHandle) -> None:
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, ME, 30)


def failed(**options: object) -> JobHandle:
    handle = Fails.set(**options).dispatch(error="KeyError")
    with pytest.raises(KeyError):
        run_job(str(handle.id))
    return handle.refresh()


def statuses(*handles: JobHandle) -> list[JobStatus | None]:
    return [one.refresh().status for one in handles]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobledger.control.many.BATCH", 3)


def test_all_that_has_not_ended_is_canceled_and_nothing_newer(connections: Connections) -> None:
    waiting_jobs = Echo.dispatch_many([{}] * 7)
    later, running = Echo.dispatch_in("1h"), Echo.dispatch()
    claim(connections, running)
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    other = failed()
    selection = control.to_cancel(connections, Filter())
    newer = Echo.dispatch()

    batches = list(control.cancel_selected(connections, selection, "ann", "enough"))

    answers = [answer for batch in batches for answer in batch]
    assert selection.count == 11
    assert {len(batch) for batch in batches} <= {1, 2, 3}
    assert {one.verdict for one in answers if one.job_id != running.id} == {Verdict.DONE}
    assert set(statuses(*waiting_jobs, later, parent, child)) == {JobStatus.CANCELED}
    assert waiting_jobs[0].reason == parent.reason == "canceled by ann: enough"
    assert one_value(connections, "SELECT reason FROM cancel_requests") == "canceled by ann: enough"
    assert statuses(running, other, newer) == [JobStatus.STARTED, JobStatus.FAILED, JobStatus.QUEUED]


def test_type_queue_and_status_choose(connections: Connections) -> None:
    chosen = Echo.dispatch_many([{}] * 2, queue="low")
    others = [Echo.dispatch(queue="high"), Fails.dispatch(queue="low"), Echo.set(queue="low").dispatch_in("1h")]
    wanted = Filter([JobStatus.QUEUED], "Echo", "low")

    selection = control.to_cancel(connections, wanted)
    assert sum(map(len, control.cancel_selected(connections, selection, "ann"))) == selection.count == 2

    assert set(statuses(*chosen)) == {JobStatus.CANCELED}
    assert JobStatus.CANCELED not in statuses(*others)


def test_failed_jobs_are_retried_once_each(connections: Connections) -> None:
    bad = [failed(queue="low") for _ in range(5)]
    canceled = Echo.dispatch()
    canceled.cancel()
    selection = control.to_retry(connections, Filter())
    seen = 0

    for answers in control.retry_selected(connections, selection, "ann"):
        assert {one.verdict for one in answers} == {Verdict.DONE}
        seen += len(answers)
        for one in answers:  # they fail again at once, and are not retried again
            with pytest.raises(KeyError):
                run_job(str(one.job_id))

    assert seen == selection.count == 5
    assert {one.refresh().status for one in bad} == {JobStatus.FAILED}
    assert {len(one.attempts) for one in bad} == {2}
    assert canceled.refresh().status is JobStatus.CANCELED
    assert control.to_retry(connections, Filter(), selection.until).count == 0


def test_what_was_interrupted_goes_on_with_the_same_moment(connections: Connections) -> None:
    bad = [failed(queue="low") for _ in range(5)]
    first = control.to_retry(connections, Filter())
    next(control.retry_selected(connections, first, "ann"))
    newer = failed(queue="low")

    rest = control.to_retry(connections, Filter(), first.until)
    list(control.retry_selected(connections, rest, "ann"))

    assert (first.count, rest.count) == (5, 2)
    assert set(statuses(*bad)) == {JobStatus.QUEUED}
    assert {str(one.id) for one in bad} <= set(waiting(connections.redis, "low"))
    assert newer.refresh().status is JobStatus.FAILED


def answers_to(batches: Iterator[list[Answer]]) -> dict[UUID, Verdict]:
    return {one.job_id: one.verdict for batch in batches for one in batch}


def before_the_batch(monkeypatch: pytest.MonkeyPatch, move: str, happens: Callable[[], object]) -> None:
    """Something happens after the jobs of the first batch were read, and before the statement that moves them."""
    original, still_to_come = getattr(moves, move), [happens]

    def happen_and_move(*arguments: object) -> object:
        while still_to_come:
            still_to_come.pop()()
        return original(*arguments)

    monkeypatch.setattr(moves, move, happen_and_move)


def run_again(handle: JobHandle) -> None:
    assert handle.retry().is_done
    with pytest.raises(KeyError):
        run_job(str(handle.id))


class FailsUniquely(Fails):
    unique = Unique("error")


def test_what_was_retried_and_failed_since_then_is_not_retried(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, untouched = failed(), failed()
    unique = FailsUniquely.dispatch(error="KeyError")
    with pytest.raises(KeyError):
        run_job(str(unique.id))
    selection = control.to_retry(connections, Filter())
    before_the_batch(monkeypatch, "retry_many", lambda: [run_again(one) for one in (plain, unique)])

    answers = answers_to(control.retry_selected(connections, selection, "ann"))

    assert answers == {plain.id: Verdict.REFUSED, untouched.id: Verdict.DONE, unique.id: Verdict.REFUSED}
    assert statuses(plain, unique) == [JobStatus.FAILED] * 2


def test_what_was_canceled_since_then_is_not_retried_with_what_failed(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = failed()
    selection = control.to_retry(connections, Filter())
    before_the_batch(monkeypatch, "retry_many", lambda: [job.retry(), job.cancel()])

    assert answers_to(control.retry_selected(connections, selection, "ann")) == {job.id: Verdict.REFUSED}
    assert job.refresh().status is JobStatus.CANCELED


def test_what_has_left_the_selected_statuses_is_not_canceled(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, queued, parent, later = (Echo.dispatch_in("1h") for _ in range(4))
    Echo.dispatch(after=parent)
    selection = control.to_cancel(connections, Filter([JobStatus.SCHEDULED]))

    def go_on() -> None:
        due = "UPDATE job_statuses SET available_at = now() WHERE id = ANY(:ids)"
        execute(connections, due, ids=[started.id, queued.id, parent.id])
        relay_due(connections)
        claim(connections, started)

    before_the_batch(monkeypatch, "cancel_many", go_on)

    answers = answers_to(control.cancel_selected(connections, selection, "ann"))

    assert answers == {one.id: Verdict.REFUSED for one in (started, queued, parent)} | {later.id: Verdict.DONE}
    assert statuses(started, queued, parent) == [JobStatus.STARTED, JobStatus.QUEUED, JobStatus.QUEUED]
    assert one_value(connections, "SELECT count(*) FROM cancel_requests") == 0


def test_what_somebody_holds_is_refused_and_the_rest_is_done(connections: Connections) -> None:
    held, *others = Echo.dispatch_many([{}] * 5)
    bad = [failed() for _ in range(2)]
    with Session(connections.engine) as session:
        Echo.dispatch(after=[held, bad[0]], session=session, on_parent_failure="run")

        waiting_ones = control.to_cancel(connections, Filter([JobStatus.QUEUED]))
        canceled = answers_to(control.cancel_selected(connections, waiting_ones, "ann"))
        retried = answers_to(control.retry_selected(connections, control.to_retry(connections, Filter()), "ann"))
        session.rollback()

    assert canceled == {held.id: Verdict.REFUSED} | {one.id: Verdict.DONE for one in others}
    assert retried == {bad[0].id: Verdict.REFUSED, bad[1].id: Verdict.DONE}
    assert statuses(held, bad[0]) == [JobStatus.QUEUED, JobStatus.FAILED]


def test_jobs_whose_children_have_yet_to_be_told_are_not_retried(connections: Connections) -> None:
    told, untold = failed(), failed()
    with connections.transaction() as connection:
        moves.note_untold(connection, [Untold(untold.id)])

    answers = answers_to(control.retry_selected(connections, control.to_retry(connections, Filter()), "ann"))

    assert answers == {told.id: Verdict.DONE, untold.id: Verdict.REFUSED}
    assert statuses(told, untold) == [JobStatus.QUEUED, JobStatus.FAILED]


def test_what_waits_for_an_equal_job_is_waited_for_as_what_is_held(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    unique = FailsUniquely.dispatch(error="KeyError")
    with pytest.raises(KeyError):
        run_job(str(unique.id))
    held: list[float] = []
    monkeypatch.setattr(LockPatience, "note_held", lambda patience: held.append(patience.lock_seconds))
    with Session(connections.engine) as session:
        FailsUniquely.dispatch(error="KeyError", session=session)

        selection = control.to_retry(connections, Filter())
        ((answer,),) = control.retry_selected(connections, selection, "ann")
        session.rollback()

    assert (answer.verdict, held) == (Verdict.REFUSED, [LockPatience.LONG_SECONDS])
    assert "another transaction" in answer.message
    assert unique.refresh().status is JobStatus.FAILED


def test_only_what_was_created_before_a_job_is_selected(connections: Connections) -> None:
    older, job, newer = Echo.dispatch_many([{}] * 3)

    selection = control.to_cancel(connections, Filter(before=job.id))
    list(control.cancel_selected(connections, selection, "ann"))

    assert selection.count == 1
    assert statuses(older, job, newer) == [JobStatus.CANCELED, JobStatus.QUEUED, JobStatus.QUEUED]


def test_a_child_is_not_retried_before_its_parent_has_ended(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    parent.cancel()
    parent.retry()

    selection = control.to_retry(connections, Filter([JobStatus.CANCELED]))
    ((answer,),) = control.retry_selected(connections, selection, "ann")

    assert (answer.verdict, child.refresh().status) == (Verdict.REFUSED, JobStatus.CANCELED)


def test_what_cannot_be_asked_for_is_refused(connections: Connections) -> None:
    with pytest.raises(OptionError, match="completed"):
        control.to_cancel(connections, Filter([JobStatus.COMPLETED]))
    with pytest.raises(OptionError, match="started"):
        control.to_retry(connections, Filter([JobStatus.FAILED, JobStatus.STARTED]))
