"""Every move of a status: the legal ones happen, all others are refused by their guards and change nothing."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from harness import eventually, one_value
from jobledger import BaseJob, Connections, Failure, JobHandle, JobStatus, Outcome, Reason, Retry, Unique
from jobledger.domain.records import Evidence, NewJob, Runner
from jobledger.domain.status import MOVES, TERMINAL, OnParentFailure
from jobledger.ledger import moves
from jobledger.ledger.wakeups import Suspect
from jobledger.maintenance.expire import expire
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import MAX_LOST_WAKES, reconcile
from jobledger.maintenance.relay import relay_due
from jobledger.registry import registry
from jobledger.worker import run_job
from sample_jobs import Asking, Echo

pytestmark = pytest.mark.one_database  # each looks at jobs of its own

DEFERRED, SCHEDULED, QUEUED = JobStatus.DEFERRED, JobStatus.SCHEDULED, JobStatus.QUEUED
STARTED, COMPLETED, FAILED, CANCELED = JobStatus.STARTED, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED

ME = Runner(worker="tester", host="here", pid=1, version="1")


@pytest.fixture
def ledger(connections: Connections) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back at the end of the test."""
    with connections.engine.connect() as connection:
        yield connection


# -- a job in each status


def new_job(**values: Any) -> NewJob:
    given = {
        "id": uuid4(),
        "job_type": "Echo",
        "queue": "default",
        "payload": "{}",
        "title": None,
        "owner": None,
        "timeout_seconds": 60,
        "max_attempts": 3,
        "has_on_failed": False,
    }
    return NewJob(**{**given, **values})


def inserted(ledger: Connection, **values: Any) -> UUID:
    job = new_job(**values)
    moves.insert(ledger, [job])
    return job.id


def claimed(ledger: Connection) -> UUID:
    job_id = inserted(ledger)
    assert moves.claim(ledger, job_id, ME, 30)
    return job_id


def completed(ledger: Connection) -> UUID:
    job_id = claimed(ledger)
    assert moves.complete(ledger, job_id, 1, "5", Evidence())
    return job_id


def failed(ledger: Connection) -> UUID:
    job_id = claimed(ledger)
    assert moves.fail(ledger, job_id, 1, Outcome.ERROR, Reason.ERROR, {"errors": 1}, Evidence(), uuid4())
    return job_id


JOB_IN: dict[JobStatus, Callable[[Connection], UUID]] = {
    DEFERRED: lambda ledger: inserted(ledger, waiting_parents=1),
    SCHEDULED: lambda ledger: inserted(ledger, delay_seconds=3600),
    QUEUED: inserted,
    STARTED: claimed,
    COMPLETED: completed,
    FAILED: failed,
    CANCELED: lambda ledger: inserted(ledger, canceled_reason="a parent failed"),
}


def parent_of(ledger: Connection, child: UUID, mode: OnParentFailure = OnParentFailure.CANCEL) -> UUID:
    parent = inserted(ledger)
    moves.lock_parents(ledger, [parent])
    moves.link(ledger, {parent: QUEUED}, {child: mode})
    return parent


def make_due(ledger: Connection, job_id: UUID) -> None:
    ledger.execute(sa.text("UPDATE job_statuses SET available_at = now() WHERE id = :id"), {"id": job_id})


# -- the moves


@dataclass(frozen=True)
class Move:
    """A move that a function makes of a job."""

    before: frozenset[JobStatus]
    after: JobStatus
    make: Callable[[Connection, UUID], object]


def promote_due(ledger: Connection, job_id: UUID) -> None:
    make_due(ledger, job_id)
    moves.promote_due(ledger, 1_000_000)


def release(ledger: Connection, job_id: UUID) -> None:
    moves.release_children(ledger, [(parent_of(ledger, job_id), job_id)])


def release_later(ledger: Connection, job_id: UUID) -> None:
    ledger.execute(sa.text("UPDATE job_statuses SET available_at = now() + '1h' WHERE id = :id"), {"id": job_id})
    moves.release_children(ledger, [(parent_of(ledger, job_id), job_id)])


def give_up(ledger: Connection, job_id: UUID) -> None:
    pushes = ledger.execute(sa.text("SELECT push_count FROM job_statuses WHERE id = :id"), {"id": job_id}).scalar_one()
    moves.give_up(ledger, Suspect(job_id, pushes, 0, 4), uuid4())


def expire_one(ledger: Connection, job_id: UUID) -> None:
    past = "UPDATE job_statuses SET expires_at = now() - interval '1 s' WHERE id = :id"
    ledger.execute(sa.text(past), {"id": job_id})
    moves.expire(ledger, [job_id], with_children=True)


def put_off(ledger: Connection, job_id: UUID) -> None:
    if status_of(ledger, job_id) not in (DEFERRED, SCHEDULED):  # those stay where they are, with other content
        moves.replace_waiting(ledger, job_id, new_job(delay_seconds=9))


MOVES_OF_FUNCTIONS = {
    "claim": Move(frozenset({QUEUED}), STARTED, lambda ledger, job: moves.claim(ledger, job, ME, 30)),
    "complete": Move(
        frozenset({STARTED}), COMPLETED, lambda ledger, job: moves.complete(ledger, job, 1, "5", Evidence())
    ),
    "reschedule": Move(
        frozenset({STARTED}),
        SCHEDULED,
        lambda ledger, job: moves.reschedule(ledger, job, 1, Outcome.ERROR, 5, {"errors": 1}, Evidence()),
    ),
    "fail": Move(
        frozenset({STARTED}),
        FAILED,
        lambda ledger, job: moves.fail(ledger, job, 1, Outcome.LOST, Reason.LOST, {"losses": 1}, Evidence(), uuid4()),
    ),
    "hand_back": Move(
        frozenset({STARTED}),
        QUEUED,
        lambda ledger, job: moves.hand_back(ledger, job, 1, Outcome.HANDED_BACK, Evidence()),
    ),
    "cancel_running": Move(
        frozenset({STARTED}),
        CANCELED,
        lambda ledger, job: moves.cancel_running(ledger, job, 1, Outcome.CANCELED, "canceled by itself", Evidence()),
    ),
    "replace_waiting": Move(frozenset({QUEUED}), SCHEDULED, put_off),
    "expire": Move(frozenset({DEFERRED, SCHEDULED, QUEUED}), FAILED, expire_one),
    "give_up": Move(frozenset({QUEUED}), FAILED, give_up),
    "release_orphans": Move(frozenset({DEFERRED}), QUEUED, lambda ledger, job: moves.release_stuck(ledger, [job])),
    "promote_due": Move(frozenset({SCHEDULED}), QUEUED, promote_due),
    "release_children": Move(frozenset({DEFERRED}), QUEUED, release),
    "release_children, delayed": Move(frozenset({DEFERRED}), SCHEDULED, release_later),
    "run_held": Move(frozenset({DEFERRED}), QUEUED, moves.run_deferred),
    "cancel_children": Move(
        frozenset({DEFERRED}),
        CANCELED,
        lambda ledger, job: moves.cancel_children(ledger, {job: f"parent {parent_of(ledger, job)} failed"}),
    ),
    "cancel": Move(
        frozenset({DEFERRED, SCHEDULED, QUEUED}),
        CANCELED,
        lambda ledger, job: moves.cancel(ledger, job, "canceled by me"),
    ),
    "retry": Move(frozenset({FAILED, CANCELED}), QUEUED, moves.retry),
}


def row_of(ledger: Connection, job_id: UUID) -> dict[str, Any]:
    row = ledger.execute(sa.text("SELECT * FROM job_statuses WHERE id = :id"), {"id": job_id}).one()
    return {**row._mapping, "available_at": None, "expires_at": None}  # tests of delays move them themselves


def attempts_of(ledger: Connection, job_id: UUID) -> list[Any]:
    return list(ledger.execute(sa.text("SELECT * FROM job_attempts WHERE job_id = :id"), {"id": job_id}))


def status_of(ledger: Connection, job_id: UUID) -> str:
    return str(row_of(ledger, job_id)["status"])


@pytest.mark.parametrize("status", sorted(JobStatus))
@pytest.mark.parametrize("name", MOVES_OF_FUNCTIONS)
def test_a_function_makes_its_move_and_no_other(ledger: Connection, name: str, status: JobStatus) -> None:
    move = MOVES_OF_FUNCTIONS[name]
    job_id = JOB_IN[status](ledger)
    row, attempts = row_of(ledger, job_id), attempts_of(ledger, job_id)

    move.make(ledger, job_id)

    if status in move.before:
        assert status_of(ledger, job_id) == move.after
    else:
        assert row_of(ledger, job_id) == row
        assert attempts_of(ledger, job_id) == attempts


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({}, QUEUED),
        ({"delay_seconds": 5}, SCHEDULED),
        ({"available_at_epoch": 4e9}, SCHEDULED),
        ({"waiting_parents": 2}, DEFERRED),
        ({"waiting_parents": 2, "delay_seconds": 5}, DEFERRED),
        ({"canceled_reason": "a parent failed"}, CANCELED),
        ({"canceled_reason": "a parent failed", "delay_seconds": 5}, CANCELED),
    ],
)
def test_an_insert_puts_a_job_where_it_has_to_wait(
    ledger: Connection, values: dict[str, Any], status: JobStatus
) -> None:
    assert status_of(ledger, inserted(ledger, **values)) == status


def test_the_functions_make_every_legal_move_and_none_besides() -> None:
    of_dispatch = {(None, status) for status in (QUEUED, SCHEDULED, DEFERRED, CANCELED)}

    of_functions = {(before, move.after) for move in MOVES_OF_FUNCTIONS.values() for before in move.before}
    assert of_functions | of_dispatch == MOVES


@pytest.mark.parametrize("attempt", [0, 2])
@pytest.mark.parametrize("name", ["complete", "reschedule", "fail", "hand_back", "cancel_running"])
def test_another_attempt_than_the_running_one_moves_nothing(ledger: Connection, name: str, attempt: int) -> None:
    job_id = claimed(ledger)
    row, attempts = row_of(ledger, job_id), attempts_of(ledger, job_id)
    named: dict[str, Callable[[], object]] = {
        "complete": lambda: moves.complete(ledger, job_id, attempt, None, Evidence()),
        "reschedule": lambda: moves.reschedule(ledger, job_id, attempt, Outcome.ERROR, 0, {}, Evidence()),
        "hand_back": lambda: moves.hand_back(ledger, job_id, attempt, Outcome.HANDED_BACK, Evidence()),
        "cancel_running": lambda: moves.cancel_running(
            ledger, job_id, attempt, Outcome.CANCELED, "canceled", Evidence()
        ),
        "fail": lambda: moves.fail(ledger, job_id, attempt, Outcome.ERROR, Reason.ERROR, {}, Evidence(), uuid4()),
    }

    assert not named[name]()
    assert row_of(ledger, job_id) == row
    assert attempts_of(ledger, job_id) == attempts


def test_the_end_of_an_earlier_attempt_moves_nothing_of_a_later_one(ledger: Connection) -> None:
    job_id = claimed(ledger)
    moves.reschedule(ledger, job_id, 1, Outcome.LOST, 0, {"losses": 1}, Evidence())
    promote_due(ledger, job_id)
    assert moves.claim(ledger, job_id, ME, 30)

    assert moves.complete(ledger, job_id, 1, "5", Evidence()) is None
    assert status_of(ledger, job_id) == STARTED
    assert moves.complete(ledger, job_id, 2, "5", Evidence())


# -- what moves with a status


def test_a_claim_is_taken_up_again_by_the_delivery_that_made_it_and_by_no_other(ledger: Connection) -> None:
    job_id, mine = inserted(ledger), replace(ME, token=uuid4())
    assert moves.claim(ledger, job_id, mine, 30)

    again = moves.claim_again(ledger, job_id, mine, 30)

    assert again is not None
    assert (again.id, again.attempt) == (job_id, 1)
    assert [moves.claim_again(ledger, job_id, other, 30) for other in (ME, replace(ME, token=uuid4()))] == [None] * 2
    moves.complete(ledger, job_id, 1, None, Evidence())
    assert moves.claim_again(ledger, job_id, mine, 30) is None


def test_a_job_that_is_handed_back_keeps_its_place_and_its_budgets(ledger: Connection) -> None:
    job_id = claimed(ledger)
    ledger.execute(
        sa.text("UPDATE job_statuses SET queued_at = queued_at - interval '1 hour' WHERE id = :id"), {"id": job_id}
    )
    before = row_of(ledger, job_id)

    wake = moves.hand_back(ledger, job_id, 1, Outcome.HANDED_BACK, Evidence(log_tail="half done"))

    after = row_of(ledger, job_id)
    assert wake is not None
    assert (wake.id, wake.queue, wake.push_count) == (job_id, "default", before["push_count"] + 1)
    kept = ("queued_at", "priority", "errors", "crashes", "losses", "attempt", "payload")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after["pushed_at"] >= before["pushed_at"]
    (attempt,) = attempts_of(ledger, job_id)
    assert (attempt.outcome, attempt.log_tail) == ("handed_back", "half done")
    assert moves.claim(ledger, job_id, ME, 30).attempt == 2


def test_a_claim_opens_an_attempt_with_a_lease(ledger: Connection) -> None:
    job_id = inserted(ledger, payload='{"n": 5}', timeout_seconds=7)

    claim = moves.claim(ledger, job_id, ME, 30)

    assert claim is not None
    assert (claim.id, claim.attempt, claim.payload, claim.timeout_seconds) == (job_id, 1, {"n": 5}, 7)
    (attempt,) = attempts_of(ledger, job_id)
    assert (attempt.number, attempt.worker, attempt.host, attempt.pid, attempt.version) == (1, "tester", "here", 1, "1")
    assert (attempt.lease_expires_at - attempt.started_at).total_seconds() == 30
    assert attempt.backend_pid == ledger.execute(sa.text("SELECT pg_backend_pid()")).scalar()
    assert (attempt.outcome, attempt.finished_at) == (None, None)


@pytest.mark.parametrize("name", ["complete", "reschedule", "fail"])
def test_an_end_closes_the_attempt_with_its_evidence(ledger: Connection, name: str) -> None:
    job_id = claimed(ledger)
    evidence = Evidence("ValueError", "no", "Traceback", "INFO hello", 1000, 1, 2, "half")
    ends: dict[str, Callable[[], object]] = {
        "complete": lambda: moves.complete(ledger, job_id, 1, None, evidence),
        "reschedule": lambda: moves.reschedule(ledger, job_id, 1, Outcome.ERROR, 0, {}, evidence),
        "fail": lambda: moves.fail(ledger, job_id, 1, Outcome.ERROR, Reason.ERROR, {}, evidence, uuid4()),
    }

    ends[name]()

    (attempt,) = attempts_of(ledger, job_id)
    assert attempt.finished_at is not None
    assert attempt.outcome == ("completed" if name == "complete" else "error")
    assert (attempt.error_type, attempt.error_message, attempt.traceback) == ("ValueError", "no", "Traceback")
    assert (attempt.log_tail, attempt.peak_memory_bytes) == ("INFO hello", 1000)
    assert (attempt.progress_done, attempt.progress_total, attempt.progress_note) == (1, 2, "half")


@pytest.mark.parametrize("counter", ["errors", "crashes", "losses"])
def test_an_end_spends_of_one_budget(ledger: Connection, counter: str) -> None:
    job_id = claimed(ledger)

    moves.reschedule(ledger, job_id, 1, Outcome.ERROR, 0, {counter: 1}, Evidence())

    row = row_of(ledger, job_id)
    assert {name for name in ("errors", "crashes", "losses") if row[name]} == {counter}
    assert row["attempt"] == 1


# -- who may be claimed


@pytest.mark.parametrize(
    "change", ["held_by = 'limit:api'", "expires_at = now() - interval '1 s'", "expires_at = now()"]
)
def test_a_queued_job_that_is_held_or_has_expired_is_not_claimed(ledger: Connection, change: str) -> None:
    job_id = inserted(ledger)
    ledger.execute(sa.text(f"UPDATE job_statuses SET {change} WHERE id = :id"), {"id": job_id})

    assert moves.claim(ledger, job_id, ME, 30) is None
    assert status_of(ledger, job_id) == QUEUED
    assert attempts_of(ledger, job_id) == []


def test_a_job_that_expires_later_is_claimed(ledger: Connection) -> None:
    job_id = inserted(ledger)
    ledger.execute(sa.text("UPDATE job_statuses SET expires_at = now() + '1 s' WHERE id = :id"), {"id": job_id})

    assert moves.claim(ledger, job_id, ME, 30) is not None


def test_a_job_that_nobody_has_dispatched_is_not_claimed(ledger: Connection) -> None:
    assert moves.claim(ledger, uuid4(), ME, 30) is None


def test_of_two_deliveries_at_once_the_second_waits_and_then_finds_nothing(connections: Connections) -> None:
    job_id = Echo.dispatch().id
    with ThreadPoolExecutor(1) as other, connections.transaction() as first:
        claim = moves.claim(first, job_id, ME, 30)
        second = other.submit(_claim, connections, job_id)
        eventually(lambda: _somebody_waits_for(connections, first), what="the second delivery waits")

    assert claim is not None
    assert second.result() is None


def test_of_many_deliveries_at_once_exactly_one_claims(connections: Connections) -> None:
    jobs = [one.id for one in Echo.dispatch_many([{}] * 20)]
    gate = threading.Barrier(4)

    def claim_all() -> int:
        gate.wait(10)
        return sum(_claim(connections, job_id) is not None for job_id in jobs)

    with ThreadPoolExecutor(4) as workers:
        claims = [one.result() for one in [workers.submit(claim_all) for _ in range(4)]]

    assert sum(claims) == 20
    with connections.transaction() as ledger:
        assert [len(attempts_of(ledger, job_id)) for job_id in jobs] == [1] * 20


def _claim(connections: Connections, job_id: UUID) -> object:
    with connections.transaction() as connection:
        return moves.claim(connection, job_id, ME, 30)


def _somebody_waits_for(connections: Connections, holder: Connection) -> bool:
    pid = holder.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    return bool(
        one_value(connections, "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))", pid=pid)
    )


# -- the history of everything that can happen


class NoLuck(Exception): ...


class PutOff(BaseJob):
    unique = Unique(on_conflict="replace")

    def _perform(self) -> None: ...


class Unlucky(BaseJob):
    """Fails once, then for good."""

    retry = Retry(2, backoff="fixed", base=0.001, jitter=False)

    def _perform(self) -> None:
        raise NoLuck

    def on_failed(self, error: Failure) -> None: ...


@pytest.fixture
def history(connections: Connections) -> Iterator[Callable[[], set[tuple[str | None, str]]]]:
    """Every move that the database has seen, written down by a trigger."""
    with connections.transaction() as connection:
        connection.exec_driver_sql("""
            CREATE TABLE history (before text, after text);
            CREATE FUNCTION write_history() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO history VALUES (CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status);
                RETURN NULL;
            END $$;
            CREATE TRIGGER history_insert AFTER INSERT ON job_statuses FOR EACH ROW EXECUTE FUNCTION write_history();
            CREATE TRIGGER history_update AFTER UPDATE ON job_statuses FOR EACH ROW
                WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION write_history();
        """)

    def edges() -> set[tuple[str | None, str]]:
        with connections.transaction() as connection:
            return {(row.before, row.after) for row in connection.execute(sa.text("SELECT * FROM history"))}

    yield edges
    with connections.transaction() as connection:
        connection.exec_driver_sql("DROP FUNCTION write_history() CASCADE; DROP TABLE history")


def test_whatever_happens_to_jobs_is_a_legal_move(
    connections: Connections, history: Callable[[], set[tuple[str | None, str]]]
) -> None:
    def run(handle: JobHandle) -> None:
        with contextlib.suppress(NoLuck):
            run_job(str(handle.id))

    good, bad, lost, unknown = Echo.dispatch(), Unlucky.dispatch(), Echo.dispatch(), Unlucky.set(title="?").dispatch()
    for unwanted in (*Echo.dispatch_many([{}, {}]), Echo.dispatch_in("1h")):
        assert unwanted.cancel().is_done
    after_good, after_bad = Echo.dispatch(after=good), Echo.dispatch(after=bad)
    Echo.dispatch(after=[after_bad, lost])
    later = Echo.set(after=good, delay="1h").dispatch()
    run(good)
    run(good)
    run(after_good)
    for _ in range(2):
        run(bad)
        relay_due(connections)
    Echo.dispatch(after=bad)
    assert after_bad.retry().is_done
    assert bad.retry().is_done
    registry.forget("Unlucky")
    run(unknown)
    registry.register("Unlucky", Unlucky)
    run(Asking.dispatch(what="cancel", until=2))
    PutOff.dispatch()
    PutOff.dispatch_in("1h")
    late = [
        Echo.dispatch(expires_in=60),
        Echo.set(expires_in=60).dispatch_in("1h"),
        Echo.dispatch(expires_in=60, after=lost),
    ]
    with connections.transaction() as connection:
        connection.exec_driver_sql("UPDATE job_statuses SET expires_at = now() WHERE expires_at IS NOT NULL")
    assert expire(connections) == len(late)
    _claim(connections, lost.id)
    stopped = Echo.dispatch()
    _claim(connections, stopped.id)
    with connections.transaction() as connection:
        assert moves.hand_back(connection, stopped.id, 1, Outcome.HANDED_BACK, Evidence())
    with connections.transaction() as connection:
        connection.exec_driver_sql("UPDATE job_attempts SET lease_expires_at = now() - interval '1 h'")
        connection.exec_driver_sql("INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reap', 'me', 'epoch')")
    unwakeable = Echo.dispatch()
    connections.redis.flushall()
    with connections.transaction() as connection:
        connection.exec_driver_sql("UPDATE job_statuses SET pushed_at = now() - interval '1 h'")
        connection.exec_driver_sql(
            "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reconcile', 'me', 'epoch')"
        )
        connection.exec_driver_sql(
            f"INSERT INTO lost_wakes (job_id, attempt, losses) VALUES ('{unwakeable.id}', 0, {MAX_LOST_WAKES - 1})"
        )
    reconcile(connections, settled_seconds=0.0)
    assert unwakeable.refresh().status is FAILED
    eager = connections.settings.model_copy(update={"lease_seconds": 1})
    eventually(lambda: reap(Connections(eager)), what="the lost attempt is reaped")

    assert later.refresh().status is SCHEDULED
    assert history() == MOVES


# -- rows that cannot be

IMPOSSIBLE = {
    "ck_job_statuses_status_known": (QUEUED, "status = 'finished'"),
    "ck_job_statuses_finished_iff_terminal": (QUEUED, "finished_at = now()"),
    "ck_job_statuses_reason_fits_status": (QUEUED, "reason = 'error'"),
    "ck_job_statuses_result_only_completed": (STARTED, "result = '5'"),
    "ck_job_statuses_started_has_attempt": (STARTED, "started_at = NULL"),
    "ck_job_statuses_queued_has_time": (QUEUED, "queued_at = NULL"),
    "ck_job_statuses_held_only_queued": (STARTED, "held_by = 'pause:default'"),
    "ck_job_statuses_deferred_has_parents": (DEFERRED, "waiting_parents = 0"),
    "ck_job_statuses_counters_fit": (STARTED, "errors = 2"),
    "ck_job_statuses_max_attempts_range": (QUEUED, "max_attempts = 0"),
    "ck_job_statuses_priority_range": (QUEUED, "priority = 11"),
    "ck_job_statuses_timeout_positive": (QUEUED, "timeout_seconds = 0"),
    "ck_job_statuses_payload_object": (QUEUED, "payload = '[1]'"),
    "ck_job_statuses_name_lengths": (QUEUED, "queue = ''"),
    "ck_job_statuses_idempotency_scope_with_key": (QUEUED, "idempotency_key = 'k'"),
}
NEW_SCHEDULE = "INSERT INTO schedules (id, name, trigger, timezone"
VALUES = "VALUES (gen_random_uuid(), 'nightly', 'cron', 'UTC'"
NEW_TICK = f"WITH new AS ({NEW_SCHEDULE}) {VALUES}) RETURNING id) INSERT INTO schedule_ticks (schedule_id, fire_at"
NEW_LIMIT = "INSERT INTO job_limits (job_id, kind, key, most, window_seconds) VALUES (gen_random_uuid(),"
IMPOSSIBLE_ELSEWHERE = {
    "ck_job_attempts_outcome_known": "UPDATE job_attempts SET outcome = 'fine', finished_at = now()",
    "ck_job_attempts_outcome_iff_finished": "UPDATE job_attempts SET finished_at = now()",
    "ck_job_attempts_number_positive": "UPDATE job_attempts SET number = 0",
    "ck_redis_epoch_only_row": "INSERT INTO redis_epoch (only_row, epoch) VALUES (false, 'another')",
    "ck_job_ledger_only_row": "UPDATE job_ledger SET only_row = false",
    "ck_job_dependencies_not_itself": "INSERT INTO job_dependencies SELECT id, id FROM job_statuses LIMIT 1",
    "ck_job_dependencies_on_parent_failure_known": "INSERT INTO job_dependencies"
    " (parent_id, child_id, on_parent_failure) SELECT id, gen_random_uuid(), 'sulk' FROM job_statuses LIMIT 1",
    "ck_job_limits_kind_known": f"{NEW_LIMIT} 'wish', 'a', 1, NULL)",
    "ck_job_limits_rate_has_window": f"{NEW_LIMIT} 'rate', 'a', 1, NULL)",
    "ck_job_limits_positive": f"{NEW_LIMIT} 'rate', 'a', 1, 0)",
    "ck_job_limits_key_length": f"{NEW_LIMIT} 'limit', '', 1, NULL)",
    "ck_limit_keys_kind_known": "INSERT INTO limit_keys (kind, key) VALUES ('wish', 'a')",
    "ck_limit_keys_taken_not_negative": "INSERT INTO limit_keys (kind, key, taken) VALUES ('limit', 'a', -1)",
    "ck_pauses_kind_known": "INSERT INTO pauses (kind, name, paused_by) VALUES ('worker', 'w1', 'me')",
    "ck_pauses_name_length": "INSERT INTO pauses (kind, name, paused_by) VALUES ('queue', '', 'me')",
    "ck_schedules_name_length": "INSERT INTO schedules (id, name, trigger, timezone)"
    " VALUES (gen_random_uuid(), '', 'cron', 'UTC')",
    "ck_schedules_definition_with_fingerprint": f"{NEW_SCHEDULE}, fingerprint) {VALUES}, 'abc')",
    "ck_schedules_error_with_time": f"{NEW_SCHEDULE}, error) {VALUES}, 'it failed')",
    "ck_schedules_pause_has_person": f"{NEW_SCHEDULE}, paused_at) {VALUES}, now())",
    "ck_schedule_ticks_kind_known": f"{NEW_TICK}, kind) SELECT id, now(), 'whim' FROM new",
    "ck_schedule_ticks_outcome_known": f"{NEW_TICK}, outcome, fired_at) SELECT id, now(), 'lost', NULL FROM new",
    "ck_schedule_ticks_fired_has_time": f"{NEW_TICK}, fired_at) SELECT id, now(), NULL FROM new",
    "ck_schedule_ticks_unfired_has_reason": f"{NEW_TICK}, outcome, fired_at)"
    " SELECT id, now(), 'skipped', NULL FROM new",
}


def refusal_of(ledger: Connection, statement: str, **parameters: Any) -> str | None:
    """The constraint that refuses a statement."""
    with pytest.raises(sa.exc.IntegrityError) as refusal:
        ledger.execute(sa.text(statement), parameters)
    assert isinstance(refusal.value.orig, psycopg2.Error)
    return refusal.value.orig.diag.constraint_name


@pytest.mark.parametrize("constraint", IMPOSSIBLE)
def test_an_impossible_job_is_refused(ledger: Connection, constraint: str) -> None:
    status, change = IMPOSSIBLE[constraint]
    job_id = JOB_IN[status](ledger)

    assert refusal_of(ledger, f"UPDATE job_statuses SET {change} WHERE id = :id", id=job_id) == constraint


@pytest.mark.parametrize("constraint", IMPOSSIBLE_ELSEWHERE)
def test_another_impossible_row_is_refused(ledger: Connection, constraint: str) -> None:
    claimed(ledger)

    assert refusal_of(ledger, IMPOSSIBLE_ELSEWHERE[constraint]) == constraint


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_ended_job_has_the_time_of_its_end(ledger: Connection, status: JobStatus) -> None:
    job_id = JOB_IN[status](ledger)

    refused_by = refusal_of(ledger, "UPDATE job_statuses SET finished_at = NULL WHERE id = :id", id=job_id)

    assert refused_by == "ck_job_statuses_finished_iff_terminal"


@pytest.mark.parametrize(
    ("status", "reason"), [(FAILED, "NULL"), (FAILED, "'bad luck'"), (CANCELED, "NULL"), (COMPLETED, "'error'")]
)
def test_a_reason_fits_the_status(ledger: Connection, status: JobStatus, reason: str) -> None:
    job_id = JOB_IN[status](ledger)

    refused_by = refusal_of(ledger, f"UPDATE job_statuses SET reason = {reason} WHERE id = :id", id=job_id)

    assert refused_by == "ck_job_statuses_reason_fits_status"


def test_every_check_of_the_ledger_is_tested_here(connections: Connections) -> None:
    with connections.transaction() as connection:
        checks = connection.execute(
            sa.text("SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace")
        )
        assert set(checks.scalars()) == {*IMPOSSIBLE, *IMPOSSIBLE_ELSEWHERE}
