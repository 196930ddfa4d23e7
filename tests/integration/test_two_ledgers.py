"""Two ledgers, one Redis, the same queues: who is refused, what is put back, and what counts against no job."""

import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner
from rq import Queue, SimpleWorker
from rq.job import Job

from harness import SHORT, Stack, eventually, execute, one_value, stack
from jobledger import Connections, JobHandle, JobStatus, Settings, configure, queues
from jobledger.cli import main
from jobledger.dispatch import accept
from jobledger.embedded import EmbeddedServers
from jobledger.errors import ConfigurationError
from jobledger.ledger.identity import LedgerName, ledger_name
from jobledger.ledger.migrate import upgrade
from jobledger.maintenance import ownership
from jobledger.maintenance.clean import clean
from jobledger.maintenance.ownership import QueuesKeeper, take_queues
from jobledger.maintenance.reconcile import MAX_LOST_WAKES, reconcile
from jobledger.maintenance.redis_restarts import notice_redis_restart
from jobledger.maintenance.relay import relay
from jobledger.observe import conservation
from jobledger.queues import owner
from jobledger.worker.strangers import MOST_RETURNS
from sample_jobs import Echo

LIST = "rq:queue:default"
_numbers = count(1)


@pytest.fixture
def other_environment(servers: EmbeddedServers, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Of a second ledger, with the same Redis and the same queues."""
    name = f"other_{next(_numbers)}"
    servers.postgres.create_database(name)
    url = servers.postgres.url_for(name)
    with_engine = Connections(Settings(database_url=url))
    upgrade(with_engine.engine)
    with_engine.close()
    yield {**environment, "JOBLEDGER_DATABASE_URL": url}
    servers.postgres.drop_database(name)


@pytest.fixture
def other(other_environment: dict[str, str]) -> Iterator[Connections]:
    made = connections_of(other_environment)
    yield made
    made.close()


@pytest.fixture
def other_system(other_environment: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    logs = tmp_path / "other"
    logs.mkdir()
    with stack(other_environment, logs) as running:
        yield running


def connections_of(environment: dict[str, str]) -> Connections:
    return Connections(
        Settings(**{name.removeprefix("JOBLEDGER_").lower(): value for name, value in environment.items()})
    )


def name_of(connections: Connections) -> LedgerName:
    name = ledger_name(connections)
    assert name is not None
    return name


def dispatch(into: Connections, number: int = 1) -> list[JobHandle]:
    """Echoes into a ledger that is not the process's own."""
    accepted = accept.dispatch([Echo.set().request({}) for _ in range(number)], into=into)
    return [JobHandle.fetch(one.id, into) for one in accepted]


def listed(connections: Connections, queue: str = "default") -> list[str]:
    return queues.waiting(connections.redis, queue)


def losses(connections: Connections) -> int:
    return int(one_value(connections, "SELECT count(*) FROM lost_wakes"))


def settle(connections: Connections) -> None:
    """As if somebody had been comparing for long, so that losses count."""
    statement = "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reconcile', 'me', 'epoch')"
    execute(connections, f"{statement} ON CONFLICT (name) DO UPDATE SET resumed_at = 'epoch'")


def age_pushes(connections: Connections) -> None:
    execute(connections, "UPDATE job_statuses SET pushed_at = pushed_at - interval '2 seconds' WHERE status = 'queued'")


def all_completed(*lists: list[JobHandle]) -> bool:
    return all(one.refresh().status is JobStatus.COMPLETED for some in lists for one in some)


# -- names


def test_a_ledger_has_one_name_and_a_copy_of_it_another(
    connections: Connections, settings: Settings, servers: EmbeddedServers
) -> None:
    again = Connections(settings)
    assert name_of(again) == name_of(connections)
    again.close()
    row_id = one_value(connections, "SELECT id FROM job_ledger")
    connections.close()  # a template has no sessions
    original = name_of(connections)
    database = settings.require_database_url().rpartition("/")[2].partition("?")[0]
    servers.postgres.create_database("copied", template=database)
    copy = Connections(Settings(database_url=servers.postgres.url_for("copied")))
    try:
        assert one_value(copy, "SELECT id FROM job_ledger") == row_id
        assert name_of(copy).id != original.id
        assert "copied" in name_of(copy).words
    finally:
        copy.close()
        servers.postgres.drop_database("copied")


def test_a_ledger_without_a_table_for_it_has_no_name_and_pushes_all_the_same(connections: Connections) -> None:
    execute(connections, "DROP TABLE job_ledger")

    handle = Echo.dispatch()

    assert ledger_name(connections) is None
    assert listed(connections) == [str(handle.id)]
    assert connections.redis.hget(f"rq:job:{handle.id}", owner.FIELD) is None


def test_a_wake_up_says_whose_it_is_also_when_the_relay_pushes_it(connections: Connections) -> None:
    pushed = Echo.dispatch()
    later = Echo.dispatch()
    connections.redis.delete(LIST, f"rq:job:{later.id}")
    execute(connections, "UPDATE job_statuses SET pushed_at = NULL WHERE id = :id", id=later.id)
    relay(connections)

    for one in (pushed, later):
        assert connections.redis.hget(f"rq:job:{one.id}", owner.FIELD) == name_of(connections).id.encode()
        assert Job.fetch(str(one.id), connection=connections.redis).args == (str(one.id),)


# -- the start


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "jobledger", "worker"),
        (sys.executable, "-m", "jobledger", "scheduler"),
        (str(Path(sys.executable).parent / "rq"), "worker", "-c", "jobledger.rq_config", "high", "default"),
    ],
    ids=["worker", "scheduler", "rq worker"],
)
@pytest.mark.parametrize("first", ["scheduler", "worker"])
def test_a_second_ledger_is_refused_with_both_names(
    connections: Connections,
    other: Connections,
    system: Stack,
    other_system: Stack,
    command: tuple[str, ...],
    first: str,
) -> None:
    getattr(system, first)()

    refused = other_system.start(*command)

    assert refused.wait(60) != 0
    said = refused.output()
    assert name_of(connections).id in said
    assert name_of(other).id in said
    assert "JOBLEDGER_QUEUE_PREFIX" in said


def test_processes_of_the_same_ledger_start_at_once(system: Stack) -> None:
    system.scheduler()
    system.worker()
    process = system.scheduler()

    assert "waiting for a sign of life" not in process.output()


def test_a_silent_owner_is_replaced(connections: Connections, other: Connections) -> None:
    take_queues(connections)  # and gives no other sign of life

    take_queues(other)

    found = owner.owner(other.redis, "")
    assert found is not None
    assert found.id == name_of(other).id


def test_a_living_owner_is_not_replaced_and_one_that_ended_is(
    connections: Connections, other: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "SIGN_SECONDS", 0.2)
    take_queues(connections)
    keeper = QueuesKeeper(connections)
    keeper.start()
    with pytest.raises(ConfigurationError, match=name_of(connections).id):
        take_queues(other)

    keeper.stop()

    assert 0 < connections.redis.pttl(owner.OWNER_KEY) <= 1000 * owner.LEAVING_SECONDS
    take_queues(other)


def test_an_emptied_redis_is_its_ledgers_again(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "SIGN_SECONDS", 0.1)
    keeper = QueuesKeeper(connections)
    keeper.start()
    eventually(lambda: owner.owner(connections.redis, ""))
    connections.redis.flushall()

    assert eventually(lambda: owner.owner(connections.redis, "")).id == name_of(connections).id
    keeper.stop()


# -- a prefix


def test_with_a_prefix_two_ledgers_share_a_redis(
    connections: Connections, other_environment: dict[str, str], system: Stack, other_system: Stack
) -> None:
    other_environment["JOBLEDGER_QUEUE_PREFIX"] = "shop."
    other = connections_of(other_environment)
    ours, theirs = dispatch(connections, 20), dispatch(other, 20)
    assert len(listed(other, "shop.default")) == len(listed(connections)) == 20
    for running in (system, other_system):
        running.start(sys.executable, "-m", "jobledger", "worker", **SHORT)
        running.scheduler(**SHORT)

    eventually(lambda: all_completed(ours, theirs), 60)

    assert {one.attempts[0].number for one in (*ours, *theirs)} == {1}
    assert losses(connections) == losses(other) == 0
    assert conservation.count(connections).drift == conservation.count(other).drift == 0
    other.close()


def test_a_prefix_is_seen_in_redis_alone(
    other_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    for name, value in {**other_environment, "JOBLEDGER_QUEUE_PREFIX": "shop."}.items():
        monkeypatch.setenv(name, value)
    with_prefix = configure()
    handle = Echo.dispatch(queue="low")

    assert queues.names(with_prefix.redis, "shop.") == ["low"]
    assert Job.fetch(str(handle.id), connection=with_prefix.redis).origin == "shop.low"
    said = CliRunner().invoke(main, ["queues", "list", "--json"])
    assert {one["name"] for one in json.loads(said.stdout)["queues"] if one["queued"]} == {"low"}
    with_prefix.redis.flushall()
    from_empty = Echo.dispatch(queue="low")
    assert listed(with_prefix, "shop.low") == [str(from_empty.id)]
    with_prefix.close()


def test_a_prefix_that_changes_is_another_redis_in_which_nothing_waits(
    connections: Connections, environment: dict[str, str]
) -> None:
    notice_redis_restart(connections)
    waiting = dispatch(connections, 3)
    renamed = connections_of({**environment, "JOBLEDGER_QUEUE_PREFIX": "shop."})

    assert notice_redis_restart(renamed) == 3
    assert relay(renamed) == 3

    assert listed(renamed, "shop.default") == [str(one.id) for one in waiting]
    assert losses(renamed) == 0
    renamed.close()


# -- wake-ups that meet a worker of the other ledger


def test_workers_of_both_run_all_jobs_once_and_blame_none(
    connections: Connections, other: Connections, system: Stack, other_system: Stack
) -> None:
    """A plain RQ worker is not asked whose the queues are. The other ledger's chores are done here: its scheduler would
    be refused."""
    system.worker(**SHORT)
    system.scheduler(**SHORT)
    rq = str(Path(sys.executable).parent / "rq")
    redis_url = other_system.environment["JOBLEDGER_REDIS_URL"]
    plain = other_system.start(rq, "worker", "-u", redis_url, "high", "default", "low", "etl")
    eventually(lambda: "Listening on" in plain.output(), 60)
    settle(connections)
    settle(other)
    ours, theirs = dispatch(connections, 30), dispatch(other, 30)

    def done() -> bool:
        reconcile(other, settled_seconds=0.0, is_sweep=False)
        relay(other, is_sweep=False)
        return all_completed(ours, theirs)

    eventually(done, 120, "the end of all jobs")

    assert {len(one.attempts) for one in (*ours, *theirs)} == {1}
    assert losses(connections) == losses(other) == 0


def run_one(connections: Connections) -> Job:
    """A delivery by a worker of a ledger: of the next job in the list."""
    configure(connections.settings)
    queue = Queue("default", connection=connections.redis)
    worker = SimpleWorker([queue], connection=connections.redis)
    job_id = queue.job_ids[0]
    worker.work(burst=True, max_jobs=1, logging_level="ERROR")
    return Job.fetch(job_id, connection=connections.redis)


def test_a_wake_up_goes_back_some_times_and_is_left_to_its_own_ledger(
    connections: Connections, other: Connections
) -> None:
    settle(connections)
    (handle,) = dispatch(connections)

    for _ in range(MOST_RETURNS):
        assert "put back" in str(run_one(other).return_value())
        assert listed(connections) == [str(handle.id)]
    assert "left to its reconciler" in str(run_one(other).return_value())
    assert listed(connections) == []

    age_pushes(connections)
    assert reconcile(connections, settled_seconds=0.0) == 1
    assert relay(connections) == 1
    assert listed(connections) == [str(handle.id)]
    assert losses(connections) == 0
    assert "put back" in str(run_one(other).return_value())  # its count begins anew


def test_the_owner_of_the_queues_loses_no_time_with_the_wake_ups_of_others(
    connections: Connections, other: Connections
) -> None:
    take_queues(other)
    (handle,) = dispatch(connections)

    assert "left to its reconciler" in str(run_one(other).return_value())

    assert listed(connections) == []
    age_pushes(connections)
    assert reconcile(connections) == 1
    assert losses(connections) == 0
    assert handle.refresh().status is JobStatus.QUEUED


def test_what_a_worker_of_older_code_took_counts_against_no_job(connections: Connections) -> None:
    """It knows no ledgers, finds no row, and calls that a duplicate: for RQ the delivery ended well."""
    settle(connections)
    (handle,) = dispatch(connections)
    for _ in range(2 * MAX_LOST_WAKES):
        assert connections.redis.lpop(LIST) == str(handle.id).encode()
        connections.redis.hset(f"rq:job:{handle.id}", "status", "finished")
        age_pushes(connections)
        assert reconcile(connections, settled_seconds=0.0) == 1
        assert relay(connections) == 1

    assert handle.refresh().status is JobStatus.QUEUED
    assert losses(connections) == 0


@pytest.mark.parametrize("sign", ["owner", "wake-up", None])
def test_no_loss_counts_while_another_ledger_is_there(
    connections: Connections, other: Connections, sign: str | None
) -> None:
    settle(connections)
    (handle,) = dispatch(connections)
    connections.redis.delete(LIST)  # by a worker that says nothing
    if sign == "owner":
        take_queues(other)
    elif sign == "wake-up":
        dispatch(other)

    assert reconcile(connections, grace_seconds=0.0, settled_seconds=0.0) == 1

    assert handle.refresh().status is JobStatus.QUEUED
    assert losses(connections) == (0 if sign else 1)


def test_a_wake_up_of_older_code_is_the_ledgers_own(connections: Connections, other: Connections) -> None:
    (handle,) = dispatch(connections)
    connections.redis.hdel(f"rq:job:{handle.id}", owner.FIELD)

    job = run_one(other)

    assert "nothing to do" in str(job.return_value())
    assert listed(connections) == []


def test_repair_and_counts_leave_the_wake_ups_of_others_alone(connections: Connections, other: Connections) -> None:
    (ours,), (theirs,) = dispatch(connections), dispatch(other)
    for one in (ours, theirs):  # long ago
        connections.redis.hset(f"rq:job:{one.id}", "enqueued_at", "2020-01-01T00:00:00.000000Z")

    assert clean(connections).total() == clean(other).total() == 0
    assert conservation.count(connections).drift == conservation.count(other).drift == 0

    connections.redis.hset(f"rq:job:{theirs.id}", owner.FIELD, name_of(connections).id)
    assert conservation.count(connections).without_row == 1
    assert clean(connections).total() == 1


def test_a_copy_of_a_database_does_not_clean_the_original_away(
    connections: Connections, settings: Settings, servers: EmbeddedServers
) -> None:
    """It has the same ids: here the job ended in the copy, and waits in the original."""
    (handle,) = dispatch(connections)
    connections.close()
    database = settings.require_database_url().rpartition("/")[2].partition("?")[0]
    servers.postgres.create_database("staging", template=database)
    staging = connections_of(
        {
            "JOBLEDGER_DATABASE_URL": servers.postgres.url_for("staging"),
            "JOBLEDGER_REDIS_URL": settings.require_redis_url(),
        }
    )
    try:
        JobHandle.fetch(handle.id, staging).cancel()
        assert clean(staging).total() == 0
        assert conservation.count(staging).needless == 0
        assert listed(connections) == [str(handle.id)]
    finally:
        staging.close()
        servers.postgres.drop_database("staging")


# -- what is said


def doctor(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(main, ["doctor", "--json"])
    found: dict[str, str] = next(one for one in json.loads(said.stdout)["findings"] if one["subject"] == "ledger")
    return found


def test_the_doctor_names_both_ledgers(
    connections: Connections,
    other: Connections,
    environment: dict[str, str],
    other_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_queues(connections)
    assert doctor(environment, monkeypatch)["verdict"] == "ok"
    refused = doctor(other_environment, monkeypatch)
    dispatch(other, 3)
    mixed = doctor(environment, monkeypatch)

    for finding in (refused, mixed):
        assert finding["verdict"] == "problem"
        assert name_of(connections).id in finding["message"]
        assert name_of(other).id in finding["message"]
        assert "JOBLEDGER_QUEUE_PREFIX" in finding["remedy"]
    assert re.search(r"\b3 of ledger", mixed["message"])


def test_no_queue_prefix_that_rq_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="JOBLEDGER_QUEUE_PREFIX"):
        configure(queue_prefix="a,b ")
    assert os.environ.get("JOBLEDGER_QUEUE_PREFIX") is None
