"""A job that had begun stands in line no second time."""

from dataclasses import replace

import pytest

from harness import execute
from jobledger import Connections, JobHandle, Outcome, Retry, queues
from jobledger.domain.records import Claim, Evidence, Runner
from jobledger.ledger import moves, wakeups
from jobledger.lifecycle import finish
from jobledger.lifecycle.push import push_quietly
from jobledger.maintenance.relay import relay, relay_due
from sample_jobs import Echo

LIST = "rq:queue:default"


def listed(connections: Connections) -> list[str]:
    return queues.waiting(connections.redis, "default")


def ids(*handles: JobHandle) -> list[str]:
    return [str(one.id) for one in handles]


def begun(connections: Connections) -> tuple[JobHandle, Claim]:
    handle = Echo.dispatch()
    with connections.transaction() as connection:
        claim = moves.claim(connection, handle.id, Runner("w", "h", 1, ""), 30.0)
    connections.redis.delete(LIST)
    assert claim is not None
    return handle, claim


def let_come_due(connections: Connections) -> None:
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE status = 'scheduled'")
    relay(connections)


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.LOST, Outcome.HANDED_BACK])
def test_what_had_begun_runs_again_before_all_that_waits(connections: Connections, outcome: Outcome) -> None:
    first, claim = begun(connections)
    others = Echo.dispatch_many([{}] * 3)

    with connections.transaction() as connection:
        settled = finish.settle(connection, first.id, 1, outcome, finish.decide(outcome, claim), Evidence())
    assert settled is not None
    push_quietly(connections, settled.wakes)
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE status = 'scheduled'")
    relay(connections)

    assert listed(connections) == ids(first, *others)


def test_what_had_begun_is_first_among_what_waits_in_postgres_too(connections: Connections) -> None:
    first, claim = begun(connections)
    others = Echo.dispatch_many([{}] * 3)
    connections.redis.delete(LIST)

    with connections.transaction() as connection:
        finish.settle(connection, first.id, 1, Outcome.LOST, finish.decide(Outcome.LOST, claim), Evidence())
    execute(connections, "UPDATE job_statuses SET pushed_at = NULL WHERE status = 'queued'")
    assert relay_due(connections) == 1
    with connections.transaction() as connection:
        taken, _ = wakeups.take_unpushed(connection, "default", 2)

    assert [one.id for one in taken] == [first.id, others[0].id]


def test_what_dies_again_and_again_goes_behind_what_waits(connections: Connections) -> None:
    first, claim = begun(connections)
    others = Echo.dispatch_many([{}] * 3)
    execute(connections, "UPDATE job_statuses SET attempt = 2, losses = 1 WHERE id = :id", id=first.id)
    execute(connections, "UPDATE job_attempts SET number = 2")

    with connections.transaction() as connection:
        finish.settle(connection, first.id, 2, Outcome.LOST, finish.decide(Outcome.LOST, claim), Evidence())
    relay(connections)

    assert listed(connections) == ids(*others, first)


def test_an_error_of_its_own_puts_a_job_behind_what_waits(connections: Connections) -> None:
    first, claim = begun(connections)
    others = Echo.dispatch_many([{}] * 3)

    with connections.transaction() as connection:
        decision = finish.decide(Outcome.ERROR, replace(claim, max_attempts=2), Retry(2))
        finish.settle(connection, first.id, 1, Outcome.ERROR, decision, Evidence())
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE status = 'scheduled'")
    relay(connections)

    assert listed(connections) == ids(*others, first)


@pytest.mark.parametrize("outcome", [Outcome.SNOOZED, Outcome.ERROR])
def test_what_crashed_once_and_waits_on_its_own_account_later_goes_behind_what_waits(
    connections: Connections, outcome: Outcome
) -> None:
    first, claim = begun(connections)
    with connections.transaction() as connection:
        finish.settle(connection, first.id, 1, Outcome.CRASHED, finish.decide(Outcome.CRASHED, claim), Evidence())
    for number in (2, 3):
        let_come_due(connections)
        with connections.transaction() as connection:
            assert moves.claim(connection, first.id, Runner("w", "h", 1, ""), 30.0)
        connections.redis.delete(LIST)
        with connections.transaction() as connection:
            decision = finish.Again(0.0, {"errors": 1} if outcome is Outcome.ERROR else {})
            finish.settle(connection, first.id, number, outcome, decision, Evidence())
        others = Echo.dispatch_many([{}] * 2)

        let_come_due(connections)

        assert listed(connections) == ids(*others, first)
        with connections.transaction() as connection:
            connection.exec_driver_sql("UPDATE job_statuses SET pushed_at = NULL WHERE status = 'queued'")
            taken, _ = wakeups.take_unpushed(connection, "default", 10)
        assert [one.id for one in taken][-1] == first.id
        execute(connections, "DELETE FROM job_statuses WHERE attempt = 0")
