"""The clock of the database is set back by an hour: what was written before is an hour in the future."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from harness import SHORT, Stack, eventually, execute, one_value, row_of
from jobledger import BaseJob, Connections, JobStatus, Rate, Retry, Settings, configure
from jobledger.cli import main
from jobledger.domain.records import Runner
from jobledger.ledger import clock, heartbeats, moves
from jobledger.ledger.migrate import revisions
from jobledger.maintenance.clock import look_at_clock
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.redis_restarts import notice_redis_restart
from jobledger.maintenance.relay import relay
from jobledger.observe.health import Level, judge, look_at_ledger
from jobledger.worker import run_job
from sample_jobs import Echo

HOUR = 3600.0
MOMENTS = """
SELECT table_name, column_name FROM information_schema.columns
 WHERE table_schema = 'public' AND data_type = 'timestamp with time zone'
"""


class RatedEcho(BaseJob):
    """Once a minute."""

    rate = Rate(1, per="1m")

    def _perform(self) -> None:
        pass


class FailsAtFirst(BaseJob):
    """Waits ten minutes for its second attempt."""

    retry = Retry(2, backoff="fixed", base=600, jitter=False)

    def _perform(self) -> None:
        raise ValueError("no")


@pytest.fixture
def running_scheduler(connections: Connections) -> None:
    """As if schedulers had swept until this moment, for long."""
    for name in (heartbeats.REAP, heartbeats.RECONCILE, heartbeats.RELAY):
        execute(connections, "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES (:name, 'me', 'epoch')", name=name)
    look_at_clock(connections)


def set_back(connections: Connections, seconds: float = HOUR) -> None:
    """Move all that is written into the future: to rows, a clock that was set back looks like that."""
    with connections.transaction() as connection:
        for table, column in connection.exec_driver_sql(MOMENTS).all():
            connection.exec_driver_sql(
                f"UPDATE {table} SET {column} = {column} + interval '{seconds} s' WHERE {column} > '1971-01-01'"
            )
        connection.exec_driver_sql(
            f"UPDATE limit_keys SET starts = array(SELECT s + interval '{seconds} s' FROM unnest(starts) AS s)"
        )
        until = f"to_jsonb(CAST(found ->> 'until' AS float8) + {seconds})"
        connection.exec_driver_sql(
            f"UPDATE sweeps SET found = jsonb_set(found, '{{until}}', {until}) WHERE name = 'clock' AND found ? 'until'"
        )


def age(connections: Connections, column: str, handle: object) -> float:
    """How long ago a moment of a row was; negative if it is of the future."""
    moment = getattr(row_of(connections, handle), column)
    now = one_value(connections, "SELECT clock_timestamp()")
    return float((now - moment) / timedelta(seconds=1))


def test_nothing_is_said_and_moved_while_the_clock_goes_on(connections: Connections, running_scheduler: None) -> None:
    handle = Echo.dispatch_in("30m")
    before = row_of(connections, handle)

    assert look_at_clock(connections) == 0

    assert row_of(connections, handle) == before
    with connections.transaction() as connection:
        assert clock.set_back(connection) is None


@pytest.mark.parametrize("seconds", [3.0, 60.0, HOUR])
def test_it_is_said_until_the_clock_is_there_again(
    connections: Connections,
    running_scheduler: None,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    set_back(connections, seconds)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    for seen_by_scheduler in (False, True):
        state = look_at_ledger(connections, revisions())
        said = CliRunner().invoke(main, ["doctor", "--json"])
        findings = {one["subject"]: one for one in json.loads(said.stdout)["findings"]}
        if seconds < clock.NOTICED_SECONDS:
            assert state.set_back is None
            assert "clock" not in findings
            continue
        assert state.set_back is not None
        assert state.set_back.by_seconds == pytest.approx(seconds, abs=30)
        assert judge(state, redis_works=True) is Level.DEGRADED
        assert findings["clock"]["verdict"] == "problem"
        assert state.sweeps is seen_by_scheduler  # what has swept in the future proves nothing
        look_at_clock(connections)
    execute(connections, "UPDATE sweeps SET found = jsonb_set(found, '{until}', '0') WHERE name = 'clock'")
    look_at_clock(connections)
    assert look_at_ledger(connections, revisions()).set_back is None


def test_an_attempt_without_a_process_is_reaped_after_a_lease(settings: Settings, running_scheduler: None) -> None:
    connections = configure(settings.model_copy(update={"lease_seconds": 1}))  # Postgres has been up for longer
    handle = Echo.dispatch()
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, Runner("w", "h", 1, "1"), 30)
    set_back(connections)

    look_at_clock(connections)

    lease = "SELECT extract(epoch FROM lease_expires_at - now()) FROM job_attempts"
    assert 0 <= float(one_value(connections, lease)) <= 40
    assert reap(connections) == 0  # sweeps have begun anew
    execute(connections, "UPDATE job_attempts SET lease_expires_at = now() - interval '1 s'")
    execute(connections, "UPDATE sweeps SET resumed_at = now() - interval '31 s' WHERE name = 'reap'")
    assert reap(connections) == 1


def test_a_wake_up_that_was_lost_before_is_found(connections: Connections, running_scheduler: None) -> None:
    handle = Echo.dispatch()
    execute(connections, "UPDATE job_statuses SET pushed_at = pushed_at - interval '20 s'")
    connections.redis.delete("rq:queue:default")
    set_back(connections)
    assert reconcile(connections) == 0

    look_at_clock(connections)

    assert reconcile(connections) == 1
    assert relay(connections) == 1
    assert handle.refresh().status is JobStatus.QUEUED


def test_an_emptied_redis_gets_back_what_was_pushed_before(connections: Connections, running_scheduler: None) -> None:
    notice_redis_restart(connections)
    Echo.dispatch_many([{}] * 7)
    set_back(connections)
    look_at_clock(connections)
    connections.maintenance_redis.flushall()

    assert notice_redis_restart(connections) == 7
    assert relay(connections) == 7


def test_a_retry_waits_as_long_as_it_should(connections: Connections, running_scheduler: None) -> None:
    handle = FailsAtFirst.dispatch()
    run_job(str(handle.id))
    set_back(connections)
    assert age(connections, "available_at", handle) < -HOUR

    assert look_at_clock(connections) == 1
    assert look_at_clock(connections) == 0  # once

    assert -660 < age(connections, "available_at", handle) < -540


def test_a_rate_counts_elapsed_time(connections: Connections, running_scheduler: None) -> None:
    first, second = RatedEcho.dispatch(), RatedEcho.dispatch()
    run_job(str(first.id))
    set_back(connections)
    look_at_clock(connections)

    assert one_value(connections, "SELECT max(s) <= now() FROM limit_keys, unnest(starts) AS s")
    assert second.refresh().held_by is not None  # still within its minute


def test_a_named_moment_stays(connections: Connections, running_scheduler: None) -> None:
    handle = Echo.dispatch_in("30m")
    set_back(connections)
    look_at_clock(connections)

    assert age(connections, "available_at", handle) < -HOUR


def test_a_clock_that_jumps_on_again_runs_and_reaps_nothing_twice(
    connections: Connections, running_scheduler: None
) -> None:
    handle, waiting = Echo.dispatch(), FailsAtFirst.dispatch()
    run_job(str(waiting.id))
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, Runner("w", "h", 1, "1"), 30)
    set_back(connections)
    look_at_clock(connections)
    set_back(connections, -HOUR)

    look_at_clock(connections)

    assert reap(connections) == 0  # no sweep for an hour: that is a gap
    with connections.transaction() as connection:
        assert clock.set_back(connection) is None
    assert relay(connections) <= 1
    assert [one.number for one in waiting.attempts] == [1]


def test_a_real_scheduler_says_it_and_repairs_again(connections: Connections, system: Stack) -> None:
    process = system.scheduler(**SHORT)
    eventually(lambda: one_value(connections, "SELECT count(*) FROM sweeps WHERE name = 'clock'"))
    handle = Echo.dispatch()
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, Runner("w", "h", 1, "1"), 3)
    set_back(connections)

    eventually(lambda: "The clock of Postgres was set back" in process.output())
    eventually(lambda: handle.refresh().status is not JobStatus.STARTED, 60, "the end of the attempt")
    assert look_at_ledger(connections, revisions()).sweeps
