"""The doctor: what it says of systems that are well, that have drifted, and of servers that are away or frozen."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psutil
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from jobledger import Connections, JobHandle, Settings, configure, queues
from jobledger.cli import main
from jobledger.connections import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import transitions
from jobledger.ledger.migrate import upgrade
from jobledger.ledger.rows import Runner
from jobledger.maintenance.doctor import Verdict, judge_redis
from jobledger.observe.conservation import Conservation, count
from jobledger.queues import RedisFacts
from jobledger.wake import Wake
from jobledger.worker import run_job
from limited_jobs import Guarded
from sample_jobs import Echo

LIST = "rq:queue:default"


def execute(connections: Connections, statement: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(statement), parameters)


def claimed(connections: Connections) -> JobHandle:
    handle = Echo.dispatch()
    engine = sa.create_engine(connections.engine.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert transitions.claim(connection, handle.id, Runner("w", "h", 1, "1"), 30)
    connections.redis.lrem(LIST, 0, str(handle.id))
    return handle


@pytest.fixture
def in_all_places(connections: Connections) -> Conservation:
    """A job in each place where one may be."""
    listed, _, held = Echo.dispatch(), claimed(connections), Echo.dispatch()
    Echo.dispatch(after=listed)
    Echo.dispatch_in("1h")
    execute(connections, "UPDATE job_statuses SET held_by = 'pause:default' WHERE id = :id", id=held.id)
    connections.redis.lrem(LIST, 0, str(held.id))
    unpushed, young = Echo.dispatch(), Echo.dispatch()
    execute(connections, "UPDATE job_statuses SET pushed_at = NULL WHERE id = :id", id=unpushed.id)
    for one in (unpushed, young):
        connections.redis.lrem(LIST, 0, str(one.id))
    done = Echo.dispatch()
    run_job(str(done.id))
    connections.redis.lrem(LIST, 0, str(done.id))
    return Conservation(
        listed=1,
        on_the_way=2,
        held=1,
        scheduled=1,
        deferred=1,
        running=1,
        lost=0,
        doubled=0,
        needless=0,
        without_row=0,
        unattended=0,
        leftovers=0,
        is_exact=True,
    )


def test_each_place_is_counted(connections: Connections, in_all_places: Conservation) -> None:
    counted = count(connections)

    assert counted == in_all_places
    assert counted.drift == 0


# -- what has drifted


def lose(connections: Connections) -> None:
    handle = Echo.dispatch()
    connections.redis.lrem(LIST, 0, str(handle.id))
    execute(connections, "UPDATE job_statuses SET pushed_at = now() - interval '16 s' WHERE id = :id", id=handle.id)


def double(connections: Connections) -> None:
    connections.redis.rpush(LIST, str(Echo.dispatch().id))


def leave_needless(connections: Connections) -> None:
    Echo.dispatch().cancel()


def leave_orphan(connections: Connections) -> None:
    wake = Wake(uuid4(), "default", "Echo", None, 60)
    queues.push(connections.redis, [wake])
    at = (datetime.now(UTC) - timedelta(seconds=70)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    connections.redis.hset(f"rq:job:{wake.id}", "enqueued_at", at)


def leave_unattended(connections: Connections) -> None:
    handle = claimed(connections)
    execute(
        connections, "UPDATE job_attempts SET lease_expires_at = now() - interval '1 s' WHERE job_id = :i", i=handle.id
    )
    connections.redis.hset(f"rq:job:{handle.id}", "status", "failed")
    connections.redis.xadd(f"rq:results:{handle.id}", {"exc_string": "", "worker_name": "w"})


def leave_begun(connections: Connections) -> None:
    done = Echo.dispatch()
    run_job(str(done.id))
    connections.redis.lrem(LIST, 0, str(done.id))
    execute(
        connections, "UPDATE job_statuses SET finished_at = now() - interval '2 minutes' WHERE id = :id", id=done.id
    )
    connections.redis.zadd("rq:wip:default", {f"{done.id}:e": time.time()})
    connections.redis.rpush("rq:queue:default:intermediate", str(done.id))


def lead_astray(connections: Connections) -> None:
    first, second = Guarded.dispatch_many([{}] * 2)
    run_job(str(first.id))
    run_job(str(second.id))
    connections.redis.lrem(LIST, 0, str(first.id))
    connections.redis.lrem(LIST, 0, str(second.id))
    execute(connections, "UPDATE job_limits SET has_slot = true WHERE job_id = :id", id=first.id)
    execute(connections, "UPDATE limit_keys SET taken = 1")


DRIFTS = {
    "astray": (lead_astray, 1),
    "lost": (lose, 1),
    "doubled": (double, 1),
    "needless": (leave_needless, 1),
    "without_row": (leave_orphan, 1),
    "unattended": (leave_unattended, 1),
    "leftovers": (leave_begun, 2),
}


def doctor(*arguments: str) -> tuple[Result, Any]:
    result = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    return result, json.loads(result.stdout)


def verdicts(answer: Any) -> dict[str, str]:
    return {one["subject"]: one["verdict"] for one in answer["findings"]}


@pytest.fixture
def well(connections: Connections, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Somebody repairs, somebody works, and the command finds the servers."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("relay", "reap", "reconcile"):
        execute(connections, "INSERT INTO sweeps (name, swept_by) VALUES (:name, 'test')", name=name)
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    worker = {"hostname": "here", "pid": "1", "last_heartbeat": moment, "queues": "default,low"}
    connections.redis.hset("rq:worker:w", mapping=worker)
    connections.redis.sadd("rq:workers", "rq:worker:w")
    return connections


def test_a_system_that_is_well_has_no_problem(well: Connections, in_all_places: Conservation) -> None:
    result, answer = doctor()

    assert (result.exit_code, in_all_places.drift) == (0, 0)
    found = verdicts(answer)
    assert {found[name] for name in ("schema", "clocks", "redis", "repair", "workers", "conservation")} == {"ok"}
    assert "problem" not in found.values()


@pytest.mark.parametrize("name", DRIFTS)
def test_what_has_drifted_is_found_and_mended(well: Connections, in_all_places: Conservation, name: str) -> None:
    plant, number = DRIFTS[name]
    plant(well)

    counted = count(configure(well.settings))
    assert (getattr(counted, name), counted.drift) == (number, number)
    result, answer = doctor()
    assert (result.exit_code, verdicts(answer)["conservation"]) == (1, "problem")

    result, answer = doctor("--repair")

    assert (result.exit_code, verdicts(answer)["conservation"]) == (0, "ok"), result.output
    assert sum(answer["mended"].values()) >= 1
    assert in_all_places.drift == 0


def test_a_wake_up_that_just_failed_is_not_lost_yet(connections: Connections) -> None:
    """Its grace is longer, because it was lost before."""
    lose(connections)
    execute(connections, "INSERT INTO lost_wakes (job_id, attempt, losses) SELECT id, 0, 1 FROM job_statuses")

    assert (count(connections).lost, count(connections).on_the_way) == (0, 1)


def test_people_are_shown_a_table(well: Connections) -> None:
    lose(well)

    result = CliRunner().invoke(main, ["doctor"])

    assert result.exit_code == 1
    assert result.stdout.split("\n")[0].split() == ["WHAT", "IS", "BECAUSE", "DO"]
    assert "1 queued, and Redis has lost their wake-ups" in result.stdout


# -- who is missing


def test_without_a_scheduler_nobody_repairs(well: Connections) -> None:
    execute(well, "UPDATE sweeps SET swept_at = now() - interval '1 minute' WHERE name = 'relay'")

    result, answer = doctor()

    assert (result.exit_code, verdicts(answer)["repair"]) == (1, "problem")


def test_a_queue_that_no_worker_takes_from_is_named(well: Connections) -> None:
    Echo.dispatch(queue="nobody")

    result, answer = doctor()

    (finding,) = [one for one in answer["findings"] if one["subject"] == "workers"]
    assert (result.exit_code, finding["verdict"]) == (1, "problem")
    assert "nobody (1)" in finding["message"]


def test_workers_of_whom_redis_has_forgotten_the_queues_are_a_warning(well: Connections) -> None:
    Echo.dispatch()
    well.redis.hdel("rq:worker:w", "queues", "hostname")

    result, answer = doctor()

    assert (result.exit_code, verdicts(answer)["workers"]) == (0, "warning")


def test_an_old_schema_is_a_problem_and_nothing_more_is_asked(
    servers: EmbeddedServers, well: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.postgres.create_database("before_the_doctor")
    monkeypatch.setenv("JOBLEDGER_DATABASE_URL", servers.postgres.url_for("before_the_doctor"))

    result, answer = doctor("--repair")
    servers.postgres.drop_database("before_the_doctor")

    assert (result.exit_code, verdicts(answer)["schema"]) == (1, "problem")
    assert "conservation" not in verdicts(answer)


GOOD = RedisFacts("6.2.14", "noeviction", True, 1 << 20, 0, 0.0)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (GOOD, Verdict.OK),
        (replace(GOOD, version="7.4.1"), Verdict.OK),
        (replace(GOOD, version="6.0.16"), Verdict.PROBLEM),
        (replace(GOOD, version=""), Verdict.PROBLEM),
        (replace(GOOD, eviction="allkeys-lru"), Verdict.PROBLEM),
        (replace(GOOD, has_aof=False), Verdict.WARNING),
        (replace(GOOD, memory_bytes=95, limit_bytes=100), Verdict.WARNING),
    ],
)
def test_redis_is_judged_by_what_it_says(facts: RedisFacts, verdict: Verdict) -> None:
    found = [one.verdict for one in judge_redis(facts)]

    assert verdict in found
    assert verdict is Verdict.OK or set(found) <= {verdict, Verdict.OK}


# -- servers that are away, or frozen


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """Servers that these tests may freeze."""
    with EmbeddedServers(tmp_path_factory.mktemp("own-servers"), persistent=False) as running:
        engine = make_engine(running.database_url, "template")
        upgrade(engine)
        engine.dispose()
        yield running


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_a_frozen_server_is_away(own_servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("JOBLEDGER_DATABASE_URL", own_servers.database_url)
    monkeypatch.setenv("JOBLEDGER_REDIS_URL", own_servers.redis_url)
    server = psutil.Process(getattr(own_servers, name).pid)
    frozen = [server, *server.children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        began = time.monotonic()
        result, answer = doctor("--repair")
        lasted = time.monotonic() - began
    finally:
        for process in reversed(frozen):
            process.resume()

    assert (result.exit_code, verdicts(answer)[name]) == (3, "away")
    assert lasted < 8


def test_servers_that_are_not_there_are_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    del settings
    monkeypatch.setenv("JOBLEDGER_DATABASE_URL", "postgresql://me@127.0.0.1:1/x")
    monkeypatch.setenv("JOBLEDGER_REDIS_URL", "redis://127.0.0.1:1")

    result, answer = doctor()

    assert result.exit_code == 3
    assert (verdicts(answer)["postgres"], verdicts(answer)["redis"]) == ("away", "away")
