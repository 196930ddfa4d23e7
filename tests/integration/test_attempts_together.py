"""Two attempts in one process share the parts of a work-horse and none of its assumptions: one renewal statement for
both, a cancel that ends one of them, claims that are known by their delivery, and a death that is no job's own."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import pytest
import sqlalchemy as sa

import attempts_together
from harness import Stack, eventually, execute, one_value
from jobledger import BaseJob, Connections, JobHandle, JobStatus, Outcome, control
from jobledger.domain.records import Evidence
from jobledger.ledger import moves
from jobledger.ledger.moves import Completion
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.relay import relay_due
from jobledger.queues import waiting
from jobledger.worker.board import Board
from jobledger.worker.keeper import Keeper
from jobledger.worker.keeping import Keeping
from sample_jobs import EFFECTS, Echo, Effect, Fails

SHORT = 3.0


class Works(BaseJob):
    """Works in short steps until it is told to stop."""

    job_type = "Works together"

    def _perform(self, seconds: float) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.001)
        return "worked"


@pytest.fixture
def short(connections: Connections) -> Connections:
    """Servers with a lease that is renewed each second."""
    return Connections(connections.settings.model_copy(update={"lease_seconds": SHORT}))


@contextmanager
def statements_of(connections: Connections) -> Iterator[list[str]]:
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    sa.event.listen(connections.engine, "before_cursor_execute", note)
    yield said
    sa.event.remove(connections.engine, "before_cursor_execute", note)


def rows(connections: Connections, statement: str, **parameters: object) -> list[tuple[object, ...]]:
    with connections.transaction() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement), parameters)]


def leases_of(connections: Connections, jobs: list[JobHandle]) -> list[object]:
    ids = [one.id for one in jobs]
    found = "SELECT lease_expires_at FROM job_attempts WHERE job_id = ANY(:ids) ORDER BY job_id"
    return [one for (one,) in rows(connections, found, ids=ids)]


def test_one_statement_renews_both_leases(connections: Connections, short: Connections) -> None:
    jobs = [Works.dispatch(seconds=60) for _ in range(2)]
    keeping, keeper_connections = Keeping(short), Connections(short.settings)
    keeper = Keeper(keeping.board, keeper_connections)
    threads = attempts_together.start(keeping, attempts_together.claim(short, [one.id for one in jobs]))
    eventually(lambda: sum(not one.attempt.is_empty for one in keeping.board) == 2, what="both notes")
    before = leases_of(connections, jobs)
    keeper.turn()

    time.sleep(SHORT / 3)
    with statements_of(keeper_connections) as said:
        eventually(lambda: (keeper.turn(), leases_of(connections, jobs))[1] > before)

    assert [one for one in said if "lease_expires_at" in one] == [one for one in said if "SKIP LOCKED" in one]
    assert len([one for one in said if "lease_expires_at" in one]) == 1
    assert all(new > old for new, old in zip(leases_of(connections, jobs), before, strict=True))  # type: ignore[operator]
    for one in jobs:
        control.cancel(connections, one.id, "the test")
    eventually(lambda: (keeper.turn(), not any(one.is_alive() for one in threads))[1], 30)


def test_a_cancel_ends_one_of_two_attempts(connections: Connections, short: Connections) -> None:
    canceled, other = Works.dispatch(seconds=60), Works.dispatch(seconds=5)
    keeping = Keeping(short)
    keeper = Keeper(keeping.board, short)
    threads = attempts_together.start(keeping, attempts_together.claim(short, [canceled.id, other.id]))

    control.cancel(connections, canceled.id, "ann", "not wanted")
    eventually(lambda: (keeper.turn(), canceled.refresh().status is JobStatus.CANCELED)[1], 30)
    eventually(lambda: (keeper.turn(), not any(one.is_alive() for one in threads))[1], 30)

    assert "ann" in (canceled.reason or "")
    assert (other.refresh().status, other.result) == (JobStatus.COMPLETED, "worked")
    assert [one.outcome for one in canceled.attempts] == [Outcome.CANCELED]


def test_attempts_that_take_no_session_hold_no_connection_and_those_that_do_are_noted(
    connections: Connections, short: Connections
) -> None:
    execute(connections, EFFECTS)
    plain, with_session = Echo.dispatch(), Effect.dispatch(note="once")

    for one in attempts_together.claim(short, [plain.id, with_session.id]):
        attempts_together.run(Keeping(short), one)

    backends = "SELECT backend_pid IS NOT NULL AND backend_started_at IS NOT NULL FROM job_attempts WHERE job_id = :id"
    assert one_value(connections, backends, id=plain.id) is False
    assert one_value(connections, backends, id=with_session.id) is True
    assert one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=with_session.id) == 1
    assert {plain.refresh().status, with_session.refresh().status} == {JobStatus.COMPLETED}
    assert one_value(connections, "SELECT peak_memory_bytes FROM job_attempts WHERE job_id = :id", id=plain.id) is None


def test_a_session_that_is_opened_after_the_attempt_was_reaped_writes_nothing(
    connections: Connections, short: Connections
) -> None:
    execute(connections, EFFECTS)
    job = Effect.dispatch(note="too late")
    (claim,) = attempts_together.claim(short, [job.id])
    execute(connections, "UPDATE job_attempts SET lease_expires_at = now() - interval '1 hour'")
    execute(
        connections,
        "INSERT INTO sweeps (name, swept_by, swept_at, resumed_at) VALUES ('reap', 'x', now(), now() - interval '1 h')",
    )
    eventually(lambda: reap(short) == 1 or job.refresh().status is not JobStatus.STARTED, 40)

    attempts_together.run(Keeping(short), claim)

    assert one_value(connections, "SELECT count(*) FROM effects") == 0
    assert [one.outcome for one in job.attempts] == [Outcome.LOST]


def test_a_claim_whose_answer_was_lost_takes_over_no_other_attempt_of_its_process(connections: Connections) -> None:
    job = Echo.dispatch()
    first, second = (replace(attempts_together.RUNNER, token=uuid4()) for _ in range(2))
    with connections.transaction() as connection:
        assert moves.claim_many(connection, {job.id: first.token}, first, 30)

        assert moves.claim_again(connection, job.id, second, 30) is None
        assert moves.claim_again(connection, job.id, first, 30) is not None


def test_the_death_of_a_shared_process_spends_no_crash_budget_and_its_jobs_run_isolated_next(
    connections: Connections, system: Stack
) -> None:
    jobs = [Works.dispatch(seconds=60) for _ in range(2)]
    process = system.start(
        sys.executable,
        "-m",
        "attempts_together",
        *(str(one.id) for one in jobs),
        JOBLEDGER_JOB_MODULES="integration.test_attempts_together",
    )
    path = eventually(lambda: process.output().strip().split("\n")[-1] if "/fd/" in process.output() else "", 30)
    board = Board(path)
    eventually(lambda: sum(not one.attempt.is_empty for one in board) == 2, what="both notes")
    keeper = Keeper(board, connections)
    keeper.turn()

    process.popen.kill()
    process.wait()
    eventually(lambda: (keeper.turn(), all(one.refresh().status is not JobStatus.STARTED for one in jobs))[1])

    assert rows(connections, "SELECT crashes, losses, errors FROM job_statuses") == [(0, 1, 0)] * 2
    assert [[one.outcome for one in job.attempts] for job in jobs] == [[Outcome.LOST]] * 2
    assert all(one.attempt.is_empty for one in board), "their slots are free again"
    eventually(lambda: relay_due(connections) or all(one.refresh().status is JobStatus.QUEUED for one in jobs))
    assert attempts_together.claim(connections, [one.id for one in jobs]) == [], "they are left to an isolated process"


def test_many_are_claimed_in_the_order_of_their_ids_and_what_needs_more_is_left(connections: Connections) -> None:
    jobs = [Echo.dispatch() for _ in range(5)]
    delayed, canceled, started = Echo.dispatch_in(60), Echo.dispatch(), Echo.dispatch()
    control.cancel(connections, canceled.id, "ann")
    attempts_together.claim(connections, [started.id])
    unknown = uuid4()

    claims = attempts_together.claim(
        connections, [one.id for one in (*reversed(jobs), delayed, canceled, started)] + [unknown]
    )

    assert [one.id for one in claims] == sorted(one.id for one in jobs)
    assert {one.attempt for one in claims} == {1}
    assert waiting(connections.redis, "default")


def test_many_are_completed_at_once_and_a_parent_and_a_fenced_one_are_left(connections: Connections) -> None:
    jobs = [Echo.dispatch() for _ in range(3)]
    parent, fenced = Echo.dispatch(), Fails.dispatch()
    Echo.dispatch(after=parent)
    claims = attempts_together.claim(connections, [one.id for one in (*jobs, parent, fenced)])
    execute(connections, "UPDATE job_statuses SET attempt = attempt + 1 WHERE id = :id", id=fenced.id)

    with connections.transaction() as connection:
        done = moves.complete_many(
            connection,
            [Completion(one.id, one.attempt, f'{{"n": "{one.id}"}}', Evidence(log_tail="a line")) for one in claims],
        )

    assert done == {one.id for one in jobs}
    for job in jobs:
        assert (job.refresh().status, job.result) == (JobStatus.COMPLETED, {"n": str(job.id)})
        assert [(one.outcome, one.log_tail) for one in job.attempts] == [(Outcome.COMPLETED, "a line")]
    assert parent.refresh().status is JobStatus.STARTED


def test_a_job_that_another_transaction_has_locked_keeps_the_batch_for_a_moment_only(connections: Connections) -> None:
    jobs = [Echo.dispatch() for _ in range(2)]
    with connections.engine.connect() as holder, holder.begin():
        holder.execute(sa.text("SELECT FROM job_statuses WHERE id = :id FOR UPDATE"), {"id": jobs[0].id})
        with pytest.raises(Exception, match="lock timeout"):
            attempts_together.claim(connections, [one.id for one in jobs])

    assert len(attempts_together.claim(connections, [one.id for one in jobs])) == 2
