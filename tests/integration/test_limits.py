"""Limits and rates: who starts, who is held, and who gets the slot of a job that has ended."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from harness import Stack, eventually, execute, one_value, row_of, started
from jobledger import (
    BaseJob,
    Connections,
    JobHandle,
    JobStatus,
    LedgerUnavailable,
    Limit,
    Outcome,
    Rate,
    Reason,
    Retry,
    Snooze,
    Unique,
    control,
)
from jobledger.domain.records import Evidence, Runner
from jobledger.domain.status import TERMINAL, PauseKind
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import limit_counts, moves, pauses, wakeups
from jobledger.ledger.queries import Filter
from jobledger.lifecycle.finish import Fail, settle
from jobledger.lifecycle.limits import MOST_AT_ONCE, pass_on, release
from jobledger.maintenance.expire import expire
from jobledger.maintenance.limits import maintain_limits
from jobledger.maintenance.prune import prune
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.relay import relay
from jobledger.queues import waiting
from jobledger.worker import run_job
from limited_jobs import Guarded, Metered, Pair, Sourced
from sample_jobs import Echo

ME = Runner(worker="tester", host="here", pid=1, version="1")


def begin(connections: Connections, handle: JobHandle) -> moves.LimitedClaim | None:
    """Claim a job as a worker does, and leave it running."""
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, ME, 30) is None, "it has limits"
    while True:
        with connections.transaction() as connection:
            answer = moves.claim_limited(connection, handle.id, ME, 30)
        if answer is None or not answer.lacks_keys:
            return answer
        with connections.transaction() as connection:
            moves.make_limit_keys(connection, handle.id)


def begun(connections: Connections, *handles: JobHandle) -> list[JobHandle]:
    """Those that have started by these claims, in this order."""
    return [one for one in handles if (answer := begin(connections, one)) is not None and answer.claim is not None]


def held(connections: Connections) -> dict[UUID, str]:
    with connections.transaction() as connection:
        rows = connection.execute(sa.text("SELECT id, held_by FROM job_statuses WHERE held_by IS NOT NULL"))
        return dict(rows.tuples().all())


def taken(connections: Connections, key: str) -> int:
    return int(one_value(connections, "SELECT taken FROM limit_keys WHERE kind || ':' || key = :key", key=key))


def fails(connections: Connections, handle: JobHandle) -> None:
    """End a job that was begun as its worker does."""
    attempt = row_of(connections, handle).attempt
    with connections.transaction() as connection:
        decision = Fail(Reason.ERROR)
        assert settle(connection, handle.id, attempt, Outcome.GAVE_UP, decision, Evidence()) is not None
    pass_on(connections, [handle.id])


# -- who starts


def test_as_many_start_as_there_are_slots_and_the_rest_is_held(connections: Connections) -> None:
    jobs = Sourced.dispatch_many([{"source": "crm"}] * 4)
    others = Sourced.dispatch_many([{"source": "erp"}] * 2)

    assert begun(connections, *jobs, *others) == [*jobs[:2], *others]

    assert held(connections) == {one.id: "limit:import:crm" for one in jobs[2:]}
    assert taken(connections, "limit:import:crm") == 2
    for one in jobs[2:]:
        assert one.refresh().status is JobStatus.QUEUED
        assert one.held_by == "limit:import:crm"
        assert one.attempts == []
    connections.redis.flushall()
    assert relay(connections) == 0
    assert reconcile(connections, grace_seconds=0.0) == 4 - 4
    assert begin(connections, jobs[2]) is None, "what is held is not there to be claimed"


def statements_of_a_run(connections: Connections, log: Path, handle: JobHandle) -> list[str]:
    """How each statement begins that reaches Postgres between the delivery of a job and its end, by its own log."""
    with connections.transaction() as connection:
        database = connection.execute(sa.text("SELECT current_database()")).scalar_one()
        connection.execute(sa.text(f"ALTER DATABASE {database} SET log_statement = 'all'"))
    connections.close()  # what is set counts for new sessions
    run_job(str(Echo.dispatch().id))  # and one of them is ready
    begin_at = log.stat().st_size

    run_job(str(handle.id))

    with log.open() as lines:
        lines.seek(begin_at)
        found = re.findall(r"LOG: +statement: (.*(?:\n\t.*){0,2})", lines.read())
    return [one for one in found if not one.startswith("SET default_transaction_isolation")]  # for the pool


def test_a_run_of_a_plain_job_takes_two_statements(connections: Connections, servers: EmbeddedServers) -> None:
    log = servers.postgres.directory / "log"
    job, limited = Echo.dispatch(), Guarded.dispatch()

    found = statements_of_a_run(connections, log, job)

    assert job.refresh().status is JobStatus.COMPLETED
    assert len(found) == 2, found
    assert ["pause AS" in found[0], "moved AS" in found[1]] == [True, True], "the claim, and the end"
    assert len(statements_of_a_run(connections, log, limited)) > 3, "which would be seen"
    assert one_value(connections, "SELECT count(*) FROM job_limits WHERE job_id = :id", id=job.id) == 0


def test_a_slot_that_becomes_free_goes_to_the_oldest(connections: Connections) -> None:
    first, *rest = Guarded.dispatch_many([{"n": n} for n in range(4)])
    urgent = Guarded.set(priority=1).dispatch(n=9)
    for one in (first, urgent, *reversed(rest)):
        begin(connections, one)

    order = []
    running = first
    for _ in range(4):
        connections.redis.flushall()
        fails(connections, running)
        (woken,) = [one for name in ("high", "default") for one in waiting(connections.redis, name)]
        running = next(one for one in (urgent, *rest) if str(one.id) == woken)
        assert begun(connections, running) == [running]
        order.append(running)

    assert order == [urgent, *rest]


def test_whoever_comes_later_does_not_take_the_slot_of_one_that_was_released(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{"n": 1}, {"n": 2}])
    assert begun(connections, first, second) == [first]
    fails(connections, first)
    late = Guarded.dispatch(n=3)

    assert second.refresh().held_by is None
    assert begun(connections, late, second) == [second]
    assert held(connections) == {late.id: "limit:Guarded"}


def let_all_come_at_once(connections: Connections) -> None:
    """As if all had been retries that became due: in a list of Redis, without a slot."""
    execute(connections, "UPDATE job_statuses SET held_by = NULL, pushed_at = now() WHERE status = 'queued'")
    execute(connections, "UPDATE job_limits SET has_slot = false")
    execute(connections, "UPDATE limit_keys SET taken = 0")


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_than_allowed_start_though_all_claim_at_once(connections: Connections, most: int) -> None:
    jobs = Guarded.dispatch_many([{}] * 30)
    execute(connections, "UPDATE job_limits SET most = :most", most=most)
    let_all_come_at_once(connections)
    together = threading.Barrier(10)

    def claim(some: list[JobHandle]) -> list[JobHandle]:
        together.wait()
        return begun(connections, *some)

    with ThreadPoolExecutor(10) as pool:
        runs = [one for some in pool.map(claim, [jobs[n::10] for n in range(10)]) for one in some]

    assert len(runs) == most
    assert len(held(connections)) == 30 - most


def test_a_job_without_a_slot_is_held_by_its_claim_unless_it_is_the_oldest(connections: Connections) -> None:
    first, second, third = Guarded.dispatch_many([{}] * 3)
    let_all_come_at_once(connections)
    execute(connections, "UPDATE job_statuses SET held_by = 'limit:Guarded' WHERE id = :id", id=second.id)

    answer = begin(connections, third)

    assert answer is not None
    assert (answer.claim, answer.refused_by, list(answer.free_keys)) == (None, "limit:Guarded", ["limit:Guarded"])
    assert begun(connections, first) == [first], "those that came later do not hold it up"
    assert set(held(connections)) == {second.id, third.id}


def test_a_claim_that_makes_way_releases_who_stands_before(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    let_all_come_at_once(connections)
    execute(connections, "UPDATE job_statuses SET held_by = 'limit:Guarded' WHERE id = :id", id=first.id)

    assert "held" in run_job(str(second.id))

    assert set(held(connections)) == {second.id}
    assert begun(connections, first) == [first]


def test_two_deliveries_of_one_job_take_one_slot(connections: Connections) -> None:
    (job,) = Sourced.dispatch_many([{"source": "crm"}])
    let_all_come_at_once(connections)
    together = threading.Barrier(8)

    def claim(_: int) -> list[JobHandle]:
        together.wait()
        return begun(connections, job)

    with ThreadPoolExecutor(8) as pool:
        assert sum(len(one) for one in pool.map(claim, range(8))) == 1
    assert taken(connections, "limit:import:crm") == 1


# -- the end of a run


def test_a_job_that_ends_passes_its_slot_on(connections: Connections) -> None:
    first, second, third = Guarded.dispatch_many([{"n": n} for n in range(3)])
    assert begun(connections, first) == [first]
    run_job(str(second.id))
    run_job(str(third.id))
    assert set(held(connections)) == {second.id, third.id}
    fails(connections, first)
    assert set(held(connections)) == {third.id}
    connections.redis.flushall()

    assert run_job(str(second.id)) == "completed"

    assert waiting(connections.redis, "default") == [str(third.id)]
    assert run_job(str(third.id)) == "completed"
    assert taken(connections, "limit:Guarded") == 0
    assert one_value(connections, "SELECT count(*) FROM job_limits WHERE has_slot") == 0


def test_a_released_job_that_no_wake_up_starts_passes_its_slot_on(connections: Connections) -> None:
    first, second, third = Guarded.dispatch_many([{"n": n} for n in range(3)])
    assert begun(connections, first, second, third) == [first]
    fails(connections, first)
    assert set(held(connections)) == {third.id}
    execute(connections, "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reconcile', 'me', 'epoch')")
    execute(connections, "INSERT INTO lost_wakes (job_id, attempt, losses) VALUES (:id, 0, 4)", id=second.id)
    execute(connections, "UPDATE job_statuses SET pushed_at = now() - interval '1 day' WHERE id = :id", id=second.id)
    connections.redis.flushall()

    assert reconcile(connections, settled_seconds=0.0) == 1

    assert second.refresh().reason == Reason.UNDISPATCHABLE
    assert waiting(connections.redis, "default") == [str(third.id)]
    assert begun(connections, third) == [third]


class Tries(BaseJob):
    """Ends its attempts as asked."""

    limit = Limit(1, key="tries")
    retry = Retry(3, backoff="fixed", base=60)

    def _perform(self, how: str) -> None:
        raise {"error": ValueError(), "snooze": Snooze("1m")}[how]


@pytest.mark.parametrize("how", ["error", "snooze"])
def test_a_job_that_will_run_again_gives_its_slot_back_meanwhile(connections: Connections, how: str) -> None:
    job = Tries.dispatch(how=how)

    run_job(str(job.id))

    assert job.refresh().status is JobStatus.SCHEDULED
    assert taken(connections, "limit:tries") == 0
    rival = Guarded.dispatch()
    assert begun(connections, rival) == [rival]


def test_a_job_that_is_to_run_again_at_once_keeps_its_slot(connections: Connections) -> None:
    job, other = Guarded.dispatch_many([{}] * 2)
    begun(connections, job, other)
    with connections.transaction() as connection:
        assert moves.hand_back(connection, job.id, 1, Outcome.HANDED_BACK, Evidence())

    assert maintain_limits(connections) == 0

    assert set(held(connections)) == {other.id}
    assert begun(connections, job) == [job]
    assert taken(connections, "limit:Guarded") == 1


def test_the_slot_of_an_attempt_that_was_reaped_is_passed_on(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    begun(connections, first, second)
    execute(connections, "UPDATE job_statuses SET cancel_requested_at = now() - interval '1 h' WHERE attempt = 1")

    assert reap(connections) == 1, "it was to be canceled, and has not ended itself"

    assert first.refresh().status is JobStatus.CANCELED
    assert begun(connections, second) == [second]


def test_slots_that_become_free_at_once_are_all_given(connections: Connections) -> None:
    jobs = Sourced.dispatch_many([{"source": "crm"}] * 22)
    running = begun(connections, *jobs[:2])
    for number in range(2, 22, 2):
        together = threading.Barrier(2)

        def end(one: JobHandle, together: threading.Barrier = together) -> None:
            together.wait()
            fails(connections, one)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(end, running))
        running = begun(connections, *jobs[number : number + 2])
        assert len(running) == 2, "and nobody waits for the chore"


def test_those_that_are_released_together_go_to_the_front_in_order(connections: Connections) -> None:
    jobs = Sourced.dispatch_many([{"source": "crm"}] * 4)
    connections.redis.flushall()
    Echo.dispatch()
    for one in begun(connections, *jobs[:2]):
        execute(
            connections, "UPDATE job_statuses SET status = 'completed', finished_at = now() WHERE id = :id", id=one.id
        )

    assert maintain_limits(connections) == 2

    assert waiting(connections.redis, "default")[:2] == [str(one.id) for one in jobs[2:]]


def test_an_outage_in_the_middle_leaves_nobody_released_and_not_pushed(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Guarded.dispatch_many([{}] * 4)
    begun(connections, jobs[0])
    execute(connections, "UPDATE job_limits SET most = 3")
    connections.redis.flushall()
    release = moves.release_oldest

    def once(connection: Connection, key: str) -> moves.Released | None:
        if connections.redis.exists("released"):
            raise LedgerUnavailable("Postgres is away")
        connections.redis.set("released", 1)
        return release(connection, key)

    monkeypatch.setattr(moves, "release_oldest", once)
    with pytest.raises(LedgerUnavailable):
        maintain_limits(connections)

    assert waiting(connections.redis, "default") == [str(jobs[1].id)]


def test_paused_jobs_are_given_no_slots_that_others_can_use(connections: Connections) -> None:
    running = Pair.dispatch()
    begun(connections, running)
    paused = Pair.dispatch_many([{}] * 3)
    other = Sharer.dispatch()
    control.pause(connections, PauseKind.TYPE, "Pair", "ann")

    fails(connections, running)

    assert begun(connections, other) == [other]
    assert set(held(connections).items()) == {(one.id, "pause:type:Pair") for one in paused}
    control.resume(connections, PauseKind.TYPE, "Pair", "ann")
    assert held(connections) == {}


class Sharer(BaseJob):
    """Shares the slots of another type."""

    limit = Limit(1, key="pair")

    def _perform(self) -> None: ...


def test_a_dispatch_of_many_releases_some_and_leaves_the_rest_to_the_chore(connections: Connections) -> None:
    jobs = Sourced.dispatch_many([{"source": f"s{n}"} for n in range(120)])

    assert len(held(connections)) == 120 - 50, "a look and a release for each key"
    while maintain_limits(connections):
        pass
    assert held(connections) == {}
    assert begun(connections, *jobs) == jobs


# -- whoever else ends a job that has a slot


def released(connections: Connections) -> tuple[JobHandle, JobHandle]:
    """A job that has been given a slot and has not started, and one that waits for it."""
    first, second, third = Guarded.set(expires_in="1h").dispatch_many([{"n": n} for n in range(3)])
    assert begun(connections, first, second, third) == [first]
    fails(connections, first)
    assert second.refresh().held_by is None
    assert taken(connections, "limit:Guarded") == 1
    return second, third


def by_cancel(connections: Connections, job: JobHandle) -> None:
    assert control.cancel(connections, job.id, "ann").is_done


def by_bulk(connections: Connections, job: JobHandle) -> None:
    execute(connections, "UPDATE job_statuses SET queue = 'low' WHERE id = :id", id=job.id)
    list(control.cancel_selected(connections, control.to_cancel(connections, Filter(queue="low")), "ann"))
    assert job.refresh().status is JobStatus.CANCELED


def by_expiry(connections: Connections, job: JobHandle) -> None:
    execute(connections, "UPDATE job_statuses SET expires_at = now() WHERE id = :id", id=job.id)
    assert expire(connections) == 1


def by_pause(connections: Connections, job: JobHandle) -> None:
    execute(connections, "UPDATE job_statuses SET queue = 'low' WHERE id = :id", id=job.id)
    control.pause(connections, PauseKind.QUEUE, "low", "ann")
    assert "held" in run_job(str(job.id))


@pytest.mark.parametrize("how", [by_cancel, by_bulk, by_expiry, by_pause])
def test_a_slot_goes_on_to_the_next_if_its_job_does_not_start(
    connections: Connections, how: Callable[[Connections, JobHandle], None]
) -> None:
    job, next_one = released(connections)

    how(connections, job)

    assert next_one.refresh().held_by is None
    assert taken(connections, "limit:Guarded") == 1
    assert begun(connections, next_one) == [next_one]


def test_what_waits_for_a_slot_can_be_canceled_and_expires(connections: Connections) -> None:
    first, second, third = Guarded.set(expires_in="1h").dispatch_many([{}] * 3)
    begun(connections, first, second, third)

    by_cancel(connections, second)
    by_expiry(connections, third)

    assert held(connections) == {}
    assert third.refresh().reason == "expired"
    assert taken(connections, "limit:Guarded") == 1


def test_a_job_that_is_retried_by_hand_stands_in_line_again(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    begun(connections, first, second)
    by_cancel(connections, second)

    assert control.retry(connections, second.id, "ann").is_done

    assert begun(connections, second) == []
    assert held(connections) == {second.id: "limit:Guarded"}


# -- rates


def test_no_more_start_within_the_time_than_allowed(connections: Connections) -> None:
    jobs = Metered.dispatch_many([{"source": "crm"}] * 5)

    assert begun(connections, *jobs) == jobs[:3]
    assert held(connections) == {one.id: "rate:api:crm" for one in jobs[3:]}
    assert maintain_limits(connections) == 0

    past = "UPDATE limit_keys SET starts = (SELECT array_agg(s - interval '59 s') FROM unnest(starts) AS s)"
    execute(connections, past)
    assert eventually(lambda: maintain_limits(connections), what="a minute since the first start") in (1, 2)
    eventually(lambda: maintain_limits(connections) or not held(connections), what="the rest")
    assert begun(connections, *jobs[3:]) == jobs[3:]
    assert taken(connections, "rate:api:crm") == 0, "a start that was made is no grant any more"


def test_a_start_that_was_granted_is_counted_until_it_is_made(connections: Connections) -> None:
    jobs = Metered.dispatch_many([{"source": "crm"}] * 7)
    begun(connections, *jobs)
    execute(connections, "UPDATE limit_keys SET starts = '{}'")
    assert maintain_limits(connections) == 3
    late = Metered.dispatch(source="crm")

    assert taken(connections, "rate:api:crm") == 3
    assert begun(connections, late, *jobs[3:6]) == jobs[3:6]
    assert set(held(connections)) == {late.id, jobs[6].id}


def test_ends_give_no_start_back(connections: Connections) -> None:
    jobs = Metered.dispatch_many([{"source": "crm"}] * 4)
    for one in jobs:
        run_job(str(one.id))

    assert [one.refresh().status for one in jobs] == [JobStatus.COMPLETED] * 3 + [JobStatus.QUEUED]
    assert maintain_limits(connections) == 0


def let_pass(connections: Connections, seconds: float) -> None:
    """As if all starts had been made so much earlier."""
    earlier = "UPDATE limit_keys SET starts = array(SELECT s - make_interval(secs => :some) FROM unnest(starts) AS s)"
    execute(connections, earlier, some=seconds)


class Brisk(BaseJob):
    """Ten starts within half a minute."""

    rate = Rate(10, per="30s", key="brisk")

    def _perform(self) -> None: ...


def test_the_chore_stays_for_what_a_rate_allows_soon(connections: Connections) -> None:
    jobs = Brisk.dispatch_many([{}] * 25)
    assert begun(connections, *jobs) == jobs[:10]
    let_pass(connections, 29)

    assert maintain_limits(connections, stay_seconds=10) == 10, "all of them at their moment, not at the look after it"

    assert begun(connections, *jobs) == jobs[10:20]
    assert maintain_limits(connections, stay_seconds=5) == 0, "it does not stay for what comes later"


def test_a_chore_that_is_to_stop_stays_no_longer(connections: Connections) -> None:
    jobs = Brisk.dispatch_many([{}] * 11)
    begun(connections, *jobs)
    stopping = threading.Event()
    stopping.set()

    assert maintain_limits(connections, stay_seconds=60, stopping=stopping) == 0


def test_a_rate_says_when_it_has_room(connections: Connections) -> None:
    jobs = Brisk.dispatch_many([{}] * 25)

    def wait() -> float | None:
        with connections.transaction() as connection:
            (line,) = limit_counts.lines(connection)
            return line.wait_seconds

    assert wait() == 30, "what is granted and has not started makes room after its start"
    begun(connections, *jobs[:4])
    assert wait() == 30 or 20 < wait() <= 30
    begun(connections, *jobs)
    let_pass(connections, 10)
    assert 10 < wait() <= 20
    let_pass(connections, 20)
    assert wait() == 0


class Swarming(BaseJob):
    """More starts within a second than are released in a row."""

    rate = Rate(1000, per="1s", key="swarm")

    def _perform(self) -> None: ...


def test_one_look_gives_all_that_a_rate_allows(connections: Connections) -> None:
    jobs = Swarming.dispatch_many([{}] * 220)
    waiting = len(held(connections))
    assert waiting > MOST_AT_ONCE

    assert maintain_limits(connections) == waiting

    assert held(connections) == {}
    assert len(jobs) == taken(connections, "rate:swarm")


class Hasty(BaseJob):
    """Five starts within half a second."""

    rate = Rate(5, per="500ms", key="hasty")

    def _perform(self) -> None: ...


def test_a_chore_that_stays_lets_no_more_start_than_allowed(connections: Connections) -> None:
    jobs = Hasty.dispatch_many([{}] * 25)
    ended = threading.Event()

    def tend() -> None:
        while not ended.is_set():
            maintain_limits(connections, 0.9, ended)

    with ThreadPoolExecutor(2) as chores:
        for _ in range(2):
            chores.submit(tend)
        try:
            eventually(lambda: begun(connections, *jobs) and not held(connections), what="the last are released")
            eventually(lambda: begun(connections, *jobs) or starts(connections) == 25, what="all have started")
        finally:
            ended.set()

    with connections.transaction() as connection:
        moments = connection.execute(sa.text("SELECT started_at FROM job_attempts ORDER BY 1")).scalars().all()
    assert len(moments) == 25
    gaps = [(last - first).total_seconds() for first, last in zip(moments, moments[5:], strict=False)]
    assert min(gaps) > 0.49, "a start is counted and written down by one statement, at two instants of it"


def starts(connections: Connections) -> int:
    return int(one_value(connections, "SELECT count(*) FROM job_attempts"))


# -- both at once


class Stored(BaseJob):
    """Two at once in all, and one start of each account within ten minutes."""

    limit = Limit(2, key="warehouse")
    rate = Rate(1, per="10m", key="api:{account}")

    def _perform(self, account: str) -> None: ...


def test_a_rate_that_is_used_up_blocks_nobody_else_behind_a_shared_limit(connections: Connections) -> None:
    first, *rest = Stored.dispatch_many([{"account": "a"}] * 30)

    other, another = Stored.dispatch(account="b"), Stored.dispatch(account="c")

    assert begun(connections, first, *rest, other, another) == [first, other]
    assert held(connections)[another.id] == "limit:warehouse"
    fails(connections, other)
    assert begun(connections, another) == [another], "and whoever ends a job passes its slot on to one who may start"
    assert {held(connections)[one.id] for one in rest} == {"rate:api:a"}


def test_thousands_that_may_not_start_are_passed_in_a_few_statements(connections: Connections) -> None:
    first, *_ = [one for _ in range(8) for one in Stored.dispatch_many([{"account": "a"}] * 240)]
    executed: list[str] = []
    sa.event.listen(connections.engine, "before_cursor_execute", lambda *given: executed.append(given[2]))

    other = Stored.dispatch(account="b")

    assert other.refresh().held_by is None
    assert len([one for one in executed if "held_by = %(key)s" in one]) <= 12, "looks, and 500 are moved at once"
    assert set(held(connections).values()) == {"rate:api:a"}
    assert maintain_limits(connections) == 0, "no job is moved to and fro"
    assert begun(connections, first, other) == [first, other]


def test_the_chore_looks_farther_down_the_line(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "__kwdefaults__", {**release.__kwdefaults__, "depth": 5})
    Stored.dispatch_many([{"account": "a"}] * 30)
    other = Stored.dispatch(account="b")
    assert other.refresh().held_by == "limit:warehouse"

    assert maintain_limits(connections) == 1

    assert other.refresh().held_by is None


class Alternating(BaseJob):
    """One at a time of each source, and two starts within ten minutes in all."""

    limit = Limit(1, key="alternating:{source}")
    rate = Rate(2, per="10m", key="alternating")

    def _perform(self, source: str) -> None: ...


def test_a_limit_that_is_used_up_blocks_nobody_else_behind_a_shared_rate(connections: Connections) -> None:
    first, *rest = Alternating.dispatch_many([{"source": "crm"}] * 30)
    other = Alternating.dispatch(source="erp")
    execute(connections, "UPDATE job_statuses SET held_by = 'rate:alternating' WHERE held_by IS NOT NULL")
    execute(connections, "UPDATE job_statuses SET held_by = 'rate:alternating' WHERE id = :id", id=other.id)
    execute(connections, "UPDATE job_limits SET has_slot = false WHERE job_id = :id", id=other.id)
    execute(connections, "UPDATE limit_keys SET taken = (key <> 'alternating:erp')::int")

    assert maintain_limits(connections) == 1

    assert begun(connections, first, other) == [first, other]
    assert {held(connections)[one.id] for one in rest} == {"limit:alternating:crm"}


class Piped(BaseJob):
    """One at a time, and a thousand starts within ten minutes."""

    limit = Limit(1, key="piped")
    rate = Rate(1000, per="10m", key="piped")

    def _perform(self) -> None: ...


def test_an_end_also_serves_those_that_wait_for_the_rate_of_its_job(connections: Connections) -> None:
    jobs = Piped.dispatch_many([{}] * 4)
    execute(connections, "UPDATE job_statuses SET held_by = 'rate:piped' WHERE held_by IS NOT NULL")

    for one in jobs:
        assert begun(connections, one) == [one], "and nobody waits for the chore"
        fails(connections, one)


def test_a_job_with_both_takes_both_or_neither(connections: Connections) -> None:
    first, second, third = Pair.dispatch_many([{}] * 3)  # one at a time, and two starts a minute

    assert begun(connections, first, second, third) == [first]
    assert set(held(connections).values()) == {"limit:pair"}
    fails(connections, first)
    assert begun(connections, second) == [second]
    fails(connections, second)

    assert held(connections) == {third.id: "rate:pair"}, "it goes on waiting for what it lacks"
    assert taken(connections, "limit:pair") == 0, "and keeps nothing from others meanwhile"
    execute(connections, "UPDATE limit_keys SET starts = '{}'")
    assert maintain_limits(connections) == 1
    assert (taken(connections, "limit:pair"), taken(connections, "rate:pair")) == (1, 1)
    assert begun(connections, third) == [third]
    assert (taken(connections, "limit:pair"), taken(connections, "rate:pair")) == (1, 0)


def test_a_job_that_had_a_slot_and_lacks_the_other_leaves_it(connections: Connections) -> None:
    job, _ = Pair.dispatch_many([{}] * 2)
    begun(connections, job)
    with connections.transaction() as connection:
        assert moves.hand_back(connection, job.id, 1, Outcome.HANDED_BACK, Evidence())
    execute(connections, "UPDATE limit_keys SET starts = ARRAY[now(), now()] WHERE kind = 'rate'")

    answer = begin(connections, job)

    assert answer is not None
    assert (answer.claim, answer.refused_by, list(answer.free_keys)) == (None, "rate:pair", ["limit:pair"])
    assert taken(connections, "limit:pair") == 0


# -- what the chore sets right


def test_a_slot_whose_holder_could_not_pass_it_on_is_passed_on(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    begun(connections, first, second)
    execute(
        connections,
        "UPDATE job_statuses SET status = 'completed', finished_at = now() WHERE id = :id",
        id=first.id,
    )

    assert maintain_limits(connections) == 1

    assert begun(connections, second) == [second]
    assert taken(connections, "limit:Guarded") == 1


@pytest.mark.parametrize("wrong", [0, 5])
def test_a_wrong_count_is_set_right(connections: Connections, wrong: int) -> None:
    first, second = Sourced.dispatch_many([{"source": "crm"}] * 2)
    begun(connections, first, second)
    execute(connections, "UPDATE limit_keys SET taken = :wrong", wrong=wrong)

    assert maintain_limits(connections) == 1

    assert taken(connections, "limit:import:crm") == 2
    assert maintain_limits(connections) == 0


def test_a_key_that_was_forgotten_is_made_again(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    begun(connections, first, second)
    execute(connections, "DELETE FROM limit_keys")

    maintain_limits(connections)
    maintain_limits(connections)

    assert taken(connections, "limit:Guarded") == 1
    assert begun(connections, second) == []
    assert set(held(connections)) == {second.id}


def test_a_slot_of_a_job_that_was_deleted_by_hand_is_free(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    begun(connections, first)
    execute(connections, "DELETE FROM job_statuses WHERE id = :id", id=first.id)

    assert maintain_limits(connections) == 2, "a count, and a release"

    assert begun(connections, second) == [second]


def test_a_held_job_whose_limits_are_gone_holds_nobody_up(connections: Connections) -> None:
    first, second, third = Guarded.dispatch_many([{}] * 3)
    begun(connections, first)
    execute(connections, "DELETE FROM job_limits WHERE job_id = :id", id=second.id)

    assert maintain_limits(connections) == 1
    assert set(held(connections)) == {third.id}


def test_a_rate_keeps_no_more_starts_than_any_may_have(connections: Connections) -> None:
    (job,) = Metered.dispatch_many([{"source": "crm"}])
    many = "UPDATE limit_keys SET starts = array(SELECT now() - interval '50 s' FROM generate_series(1, 5000))"
    execute(connections, many)
    execute(connections, "UPDATE job_limits SET most = 1000, window_seconds = 10")

    assert begun(connections, job) == [job]

    assert one_value(connections, "SELECT cardinality(starts) FROM limit_keys") == 1000


def test_keys_that_nobody_uses_are_forgotten(connections: Connections) -> None:
    used, waited_for, running = (Sourced.dispatch(source=name) for name in ("used", "held", "running"))
    begun(connections, used, waited_for, running)
    execute(connections, "UPDATE job_statuses SET status = 'completed', finished_at = now()")
    execute(connections, "UPDATE job_statuses SET finished_at = now() - interval '1 year' WHERE id = :id", id=used.id)
    maintain_limits(connections)
    execute(connections, "UPDATE limit_keys SET used_at = now() - interval '2 days' WHERE key <> 'import:running'")
    execute(
        connections,
        "UPDATE job_statuses SET status = 'queued', finished_at = NULL, held_by = 'limit:import:held' WHERE id = :id",
        id=waited_for.id,
    )

    prune(connections)

    with connections.transaction() as connection:
        keys = set(connection.execute(sa.text("SELECT key FROM limit_keys")).scalars())
        left = set(connection.execute(sa.text("SELECT job_id FROM job_limits")).scalars())
    assert keys == {"import:held", "import:running"}
    assert left == {waited_for.id, running.id}


# -- with everything else


class Latest(BaseJob):
    """One of its kind, of which the last one counts."""

    unique = Unique("name", on_conflict="replace")
    limit = Limit(1, key="latest:{source}")

    def _perform(self, name: str, source: str) -> None: ...


def test_a_job_that_is_put_off_has_the_limits_of_the_new_one(connections: Connections) -> None:
    other = Latest.dispatch(name="other", source="crm")
    job = Latest.dispatch(name="report", source="crm")
    assert begun(connections, other, job) == [other]

    assert Latest.dispatch(name="report", source="erp").id == job.id

    assert held(connections) == {}
    assert begun(connections, job) == [job]
    assert row_of(connections, job).payload["source"] == "erp"
    assert (taken(connections, "limit:latest:crm"), taken(connections, "limit:latest:erp")) == (1, 1)


def test_a_pause_counts_for_those_that_have_a_slot(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    control.pause(connections, PauseKind.TYPE, "Guarded", "ann")

    assert begin(connections, first) is None
    assert held(connections) == {first.id: "pause:type:Guarded", second.id: "limit:Guarded"}
    with connections.transaction() as connection:
        assert pauses.ended(connection) == []

    control.resume(connections, PauseKind.TYPE, "Guarded", "ann")
    assert begun(connections, first) == [first]
    assert set(held(connections)) == {second.id}


def test_a_dispatch_that_is_rolled_back_leaves_nothing(connections: Connections) -> None:
    with sa.orm.Session(connections.engine) as session:
        Guarded.dispatch(session=session)
        session.rollback()

    assert one_value(connections, "SELECT count(*) FROM job_limits") == 0


def test_a_dispatch_in_a_session_stands_in_line_from_its_commit(connections: Connections) -> None:
    with sa.orm.Session(connections.engine) as session:
        early = Guarded.dispatch(session=session)
        late = Guarded.dispatch()
        assert begun(connections, late) == [late]
        session.commit()

    assert held(connections) == {early.id: "limit:Guarded"}
    fails(connections, late)
    assert begun(connections, early) == [early]


def test_a_new_job_without_a_slot_is_in_no_list(connections: Connections) -> None:
    jobs = Guarded.dispatch_many([{}] * 5)

    assert waiting(connections.redis, "default") == [str(jobs[0].id)]
    assert set(held(connections)) == {one.id for one in jobs[1:]}


def test_a_job_with_a_slot_does_not_go_before_others_that_stand_in_the_list(connections: Connections) -> None:
    other = Echo.dispatch()
    job = Guarded.dispatch()

    assert waiting(connections.redis, "default") == [str(other.id), str(job.id)]


def test_a_dispatch_that_goes_on_keeps_nobody_from_a_key(connections: Connections) -> None:
    """Keys are made and counted in short transactions only."""
    with sa.orm.Session(connections.engine) as session:
        Guarded.dispatch(session=session)
        job = Guarded.dispatch()
        assert begun(connections, job) == [job]
        session.rollback()


def test_redis_away_when_a_slot_is_passed_on(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    begun(connections, first, second)
    fails(connections, first)
    connections.redis.flushall()
    with connections.transaction() as connection:
        assert wakeups.unpush(connection, [(second.id, row_of(connections, second).push_count)]) == 1

    assert relay(connections) == 1
    assert begun(connections, second) == [second]


def test_what_is_free_is_found_without_a_look_at_each_job(connections: Connections) -> None:
    jobs = Sourced.dispatch_many([{"source": f"s{n % 3}"} for n in range(30)])
    begun(connections, *jobs)
    assert len(held(connections)) == 24

    def waits() -> dict[str, float | None]:
        with connections.transaction() as connection:
            return {one.key: one.wait_seconds for one in limit_counts.lines(connection)}

    full = {f"limit:import:s{n}": None for n in range(3)}
    assert waits() == full
    execute(connections, "UPDATE limit_keys SET taken = 1 WHERE key = 'import:s1'")
    assert waits() == {**full, "limit:import:s1": 0.0}


def test_real_workers_pass_slots_on_at_once(connections: Connections, system: Stack) -> None:
    """Without a scheduler: nobody else could release them."""
    for _ in range(3):
        system.worker(JOBLEDGER_JOB_MODULES="limited_jobs")
    jobs = Guarded.dispatch_many([{"seconds": 0.2, "n": n} for n in range(12)])

    eventually(lambda: all(one.refresh().status in TERMINAL for one in jobs), seconds=60, what="all have ended")

    with connections.transaction() as connection:
        runs = connection.execute(sa.text("SELECT started_at, finished_at FROM job_attempts ORDER BY started_at")).all()
    assert len(runs) == 12
    assert all(one.finished_at <= other.started_at for one, other in pairwise(runs))
    # the last slot is given back after its job's end, in a transaction of its own
    eventually(lambda: taken(connections, "limit:Guarded") == 0, seconds=10, what="the last slot is given back")


def test_a_running_job_that_is_canceled_passes_its_slot_on(connections: Connections, system: Stack) -> None:
    system.worker(JOBLEDGER_JOB_MODULES="limited_jobs")
    system.worker(JOBLEDGER_JOB_MODULES="limited_jobs")
    first = Guarded.dispatch(seconds=60)
    started(first)
    second = Guarded.dispatch()
    eventually(lambda: second.refresh().held_by, what="it is held")

    assert first.cancel("enough", by="ann", wait=20).is_done

    assert second.wait(20).status is JobStatus.COMPLETED
