"""The doctor: what it says of systems that are well, that have drifted, and of servers that are away or frozen."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import redis
import sqlalchemy as sa
from click.testing import CliRunner, Result

from harness import REPOSITORY, eventually, one_value, stack
from jobledger import Connections, JobHandle, Settings, configure, queues
from jobledger.cli import main
from jobledger.connections.postgres import make_engine
from jobledger.domain.records import Runner, Wake
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import moves
from jobledger.ledger.migrate import revisions, upgrade
from jobledger.maintenance.doctor import Severity, judge_redis
from jobledger.maintenance.redis_restarts import notice_redis_restart
from jobledger.maintenance.relay import relay
from jobledger.observe.conservation import Conservation, count, count_places
from jobledger.observe.health import look_at_ledger, look_at_redis
from jobledger.queues import RedisFacts
from jobledger.scheduler.process import SchedulerProcess
from jobledger.schedules.book import ScheduleBook
from jobledger.worker import run_job
from limited_jobs import Guarded
from pages import blocks
from sample_jobs import Echo

LIST = "rq:queue:default"


def execute(connections: Connections, statement: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(statement), parameters)


def claimed(connections: Connections) -> JobHandle:
    handle = Echo.dispatch()
    engine = sa.create_engine(connections.engine.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert moves.claim(connection, handle.id, Runner("w", "h", 1, "1"), 30)
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


def leave_unpushed(connections: Connections) -> None:
    handle = Echo.dispatch()
    connections.redis.lrem(LIST, 0, str(handle.id))
    long_unpushed = "UPDATE job_statuses SET pushed_at = NULL, queued_at = now() - interval '16 s' WHERE id = :id"
    execute(connections, long_unpushed, id=handle.id)


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
    "unpushed": (leave_unpushed, 1),
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


def finding(answer: Any, subject: str) -> Any:
    (found,) = [one for one in answer["findings"] if one["subject"] == subject]
    return found


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
    worker = {"hostname": "here", "pid": "1", "last_heartbeat": moment, "queues": "high,default,low,etl"}
    connections.redis.hset("rq:worker:w", mapping=worker)
    connections.redis.sadd("rq:workers", "rq:worker:w")
    return connections


def test_a_system_that_is_well_has_no_problem(well: Connections, in_all_places: Conservation) -> None:
    result, answer = doctor()

    assert (result.exit_code, in_all_places.drift) == (0, 0)
    found = verdicts(answer)
    looks = ("schema", "clocks", "redis", "redis writes", "repair", "workers", "conservation")
    assert {found[name] for name in looks} == {"ok"}
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


def test_what_has_no_room_in_its_list_waits_where_it_should(connections: Connections) -> None:
    Echo.dispatch()
    leave_unpushed(connections)
    narrow = configure(connections.settings.model_copy(update={"queue_window": 2}))

    counted = count(narrow)

    assert (counted.listed, counted.on_the_way, counted.unpushed) == (1, 1, 0)


def test_what_schedulers_count_is_there_for_health_checks(
    connections: Connections, in_all_places: Conservation
) -> None:
    assert look_at_ledger(connections, revisions()).counted is None
    count_places(connections)
    lose(connections)
    count_places(connections)  # too soon: it changes nothing

    counted = look_at_ledger(connections, revisions()).counted

    assert counted is not None
    assert (counted.found, counted.age_seconds < 45) == ({**asdict(in_all_places), "drift": 0}, True)

    execute(connections, "UPDATE sweeps SET swept_at = now() - interval '46 s' WHERE name = 'count'")
    count_places(connections)
    counted = look_at_ledger(connections, revisions()).counted
    assert counted is not None
    assert (counted.found["lost"], counted.found["drift"]) == (1, 1)
    (query,) = [one.text for one in blocks(REPOSITORY / "docs/operations.md") if "WHERE name = 'count'" in one.text]
    with connections.transaction() as connection:
        assert connection.execute(sa.text(query.strip().rstrip(";"))).one().drift == 1


def test_people_are_shown_a_table(well: Connections) -> None:
    lose(well)

    result = CliRunner().invoke(main, ["doctor"])

    assert result.exit_code == 1
    assert result.stdout.split("\n")[0].split() == ["WHAT", "IS", "BECAUSE", "DO"]
    assert "1 queued, and Redis has lost their wake-ups" in result.stdout


# -- who is missing


@pytest.mark.parametrize("name", ["relay", "reap", "reconcile"])
@pytest.mark.parametrize("options", [[], ["--repair"]])
def test_without_a_scheduler_nobody_repairs(well: Connections, name: str, options: list[str]) -> None:
    """Nor is the doctor somebody: not for itself, not for the next one, and not for /health."""
    execute(well, "UPDATE sweeps SET swept_at = now() - interval '1 minute' WHERE name = :name", name=name)

    for _ in range(2):
        result, answer = doctor(*options)

        found = finding(answer, "repair")
        assert (result.exit_code, found["verdict"], found["remedy"]) == (
            1,
            "problem",
            "Run `python -m jobledger scheduler`.",
        )
    assert not look_at_ledger(well, revisions()).sweeps


def test_a_scheduler_that_runs_and_does_not_repair_has_a_log(well: Connections) -> None:
    execute(well, "DELETE FROM sweeps WHERE name = 'reconcile'")
    execute(well, "INSERT INTO schedulers (name, host, pid, version) VALUES ('here:7', 'here', 7, '1')")

    _, answer = doctor()

    found = finding(answer, "repair")
    assert (found["verdict"], found["remedy"]) == ("problem", "See the log of the scheduler here:7.")


def test_a_queue_that_no_worker_takes_from_is_named(well: Connections) -> None:
    Echo.dispatch(queue="unattended")

    result, answer = doctor()

    found = finding(answer, "workers")
    assert (result.exit_code, found["verdict"]) == (1, "problem")
    assert "unattended (1)" in found["message"]


def test_queues_without_workers_are_a_warning_before_the_first_job_waits(well: Connections) -> None:
    well.redis.hset("rq:worker:w", "queues", "default,etl")

    result, answer = doctor()

    found = finding(answer, "workers")
    assert (result.exit_code, found["verdict"]) == (0, "warning")
    assert found["message"] == "1 live; none takes from high, low, where no job waits yet."


def test_job_modules_that_cannot_be_loaded_are_a_problem(well: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLEDGER_JOB_MODULES", "sample_jobs,no_such_module")
    del well

    result, answer = doctor()

    problems = [one["message"] for one in answer["findings"] if one["verdict"] == "problem"]
    assert (result.exit_code, len(problems)) == (1, 1)
    assert "'no_such_module' cannot be imported" in problems[0]


def test_classes_whose_queue_no_worker_looks_at_are_a_warning(
    well: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBLEDGER_QUEUES", "high,low,etl")
    del well

    result, answer = doctor()

    (found,) = [one for one in answer["findings"] if one["message"].startswith("Echo goes to the queue 'default'")]
    assert (result.exit_code, found["subject"], found["verdict"]) == (0, "settings", "warning")


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


GOOD = RedisFacts("6.2.14", "noeviction", True, False, False, 1 << 20, 0, 0.0)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (GOOD, Severity.OK),
        (replace(GOOD, version="7.4.1"), Severity.OK),
        (replace(GOOD, version="6.0.16"), Severity.PROBLEM),
        (replace(GOOD, version=""), Severity.PROBLEM),
        (replace(GOOD, eviction="allkeys-lru"), Severity.PROBLEM),
        (replace(GOOD, has_aof=False), Severity.WARNING),
        (replace(GOOD, is_replica=True), Severity.PROBLEM),
        (replace(GOOD, memory_bytes=95, limit_bytes=100), Severity.WARNING),
    ],
)
def test_redis_is_judged_by_what_it_says(facts: RedisFacts, verdict: Severity) -> None:
    found = [one.verdict for one in judge_redis(facts)]

    assert verdict in found
    assert verdict is Severity.OK or set(found) <= {verdict, Severity.OK}


def test_snapshots_are_not_nothing() -> None:
    messages = [
        one.message
        for has_snapshots in (True, False)
        for one in judge_redis(replace(GOOD, has_aof=False, has_snapshots=has_snapshots))
        if one.verdict is Severity.WARNING
    ]

    assert messages == [
        "It keeps only snapshots over a restart: every wake-up after the last one is pushed again.",
        "It keeps nothing over a restart: every wake-up is pushed again.",
    ]


# -- servers that are away, frozen, or refuse


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


@contextmanager
def as_a_replica(client: redis.Redis) -> Iterator[None]:
    client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


@contextmanager
def with_full_memory(client: redis.Redis) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@pytest.fixture
def own(own_servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    """Connections to the servers that these tests may spoil; all else is well."""
    monkeypatch.setenv("JOBLEDGER_DATABASE_URL", own_servers.database_url)
    monkeypatch.setenv("JOBLEDGER_REDIS_URL", own_servers.redis_url)
    made = configure()
    made.redis.flushall()
    execute(made, "TRUNCATE job_statuses, sweeps CASCADE")
    for name in ("relay", "reap", "reconcile"):
        execute(made, "INSERT INTO sweeps (name, swept_by) VALUES (:name, 'test')", name=name)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("refusing", "remedy"),
    [
        (as_a_replica, "Have JOBLEDGER_REDIS_URL name the primary."),
        (with_full_memory, "Raise maxmemory, or lower JOBLEDGER_QUEUE_WINDOW."),
    ],
)
def test_a_redis_that_takes_no_writes_is_a_problem_to_everybody(
    own: Connections, refusing: Callable[[redis.Redis], AbstractContextManager[None]], remedy: str
) -> None:
    execute(own, "DELETE FROM sweeps WHERE name = 'relay'")
    leave_unpushed(own)
    with refusing(own.redis):
        with pytest.raises(redis.ResponseError):
            relay(own)
        with pytest.raises(redis.ResponseError):
            look_at_redis(own)
        result, answer = doctor("--repair")

        found = verdicts(answer)
        assert (result.exit_code, finding(answer, "redis writes")["remedy"]) == (1, remedy)
        assert {found[name] for name in ("redis writes", "repair", "conservation", "mending")} == {"problem"}
        said = [one["message"] for one in answer["findings"] if one["subject"] == "mending"]
        assert any(one.startswith("Not mended, wake-ups that were pushed: Redis refuses:") for one in said)

    assert relay(own) == 1
    _, answer = doctor()
    found = verdicts(answer)
    assert {found[name] for name in ("redis writes", "repair", "conservation")} == {"ok"}
    look_at_redis(own)


@pytest.fixture
def user(own: Connections, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Connections]]:
    """Connections as a Redis user who may do less."""
    made: list[Connections] = []

    def make(*rules: str) -> Connections:
        own.redis.execute_command("ACL", "SETUSER", "less", "reset", "on", ">secret", *rules)
        url = sa.make_url(own.settings.require_redis_url()).set(username="less", password="secret")
        text = url.render_as_string(hide_password=False)
        monkeypatch.setenv("JOBLEDGER_REDIS_URL", text)
        made.append(configure())
        return made[-1]

    yield make
    for one in made:
        one.close()
    own.redis.execute_command("ACL", "DELUSER", "less")


DOCUMENTED = ("~jobledger:*", "~rq:*", "resetchannels", "&rq:*", "+@all", "-@dangerous", "+info")
"""What docs/deploying.md says is enough."""


def test_a_user_with_the_documented_rights_is_refused_nothing(
    own: Connections, user: Callable[..., Connections], tmp_path: Path
) -> None:
    assert " ".join(DOCUMENTED) in (REPOSITORY / "docs/deploying.md").read_text()
    less = user(*DOCUMENTED)
    job = Echo.dispatch(text="hello")
    environment = {name: value for name, value in os.environ.items() if name.startswith("JOBLEDGER_")}
    with stack({**environment, "JOBLEDGER_JOB_MODULES": "sample_jobs"}, tmp_path) as running:
        worker, scheduler = running.worker(), running.scheduler()
        eventually(lambda: job.refresh().status == "completed")
        eventually(lambda: one_value(own, "SELECT count(*) FROM sweeps WHERE name = 'count'"))
        result, answer = doctor("--repair")

    assert (result.exit_code, {"problem", "away"} & set(verdicts(answer).values())) == (0, set()), answer
    assert notice_redis_restart(less) == 0
    for process in (worker, scheduler):
        assert "NOPERM" not in process.output()
        assert "no permission" not in process.output().lower()


def test_a_user_who_may_not_leave_a_mark_finds_lost_wake_ups_all_the_same(
    own: Connections, user: Callable[..., Connections]
) -> None:
    lose(own)
    execute(own, "DELETE FROM sweeps WHERE name = 'reconcile'")
    less = user("~rq:*", "resetchannels", "&rq:*", "+@all")
    process = SchedulerProcess(less, ScheduleBook())
    process.start()
    try:
        eventually(lambda: one_value(own, "SELECT count(*) FROM sweeps WHERE name = 'reconcile'"))
        eventually(lambda: own.redis.llen(LIST) == 1, what="the wake-up was found lost, and pushed")
    finally:
        process.stop()

    result, answer = doctor()

    found = finding(answer, "redis writes")
    assert (result.exit_code, found["verdict"]) == (1, "problem")
    assert found["remedy"].startswith("Allow its user the keys jobledger:* and rq:*")


def test_a_user_who_may_not_ask_what_the_doctor_asks_is_a_warning(
    own: Connections, user: Callable[..., Connections]
) -> None:
    del own
    user("~*", "&*", "+@all", "-info")

    _, answer = doctor()

    found = finding(answer, "redis")
    assert (found["verdict"], found["remedy"]) == ("warning", "Allow its user INFO and TIME.")


def test_a_key_that_is_somebody_elses_is_no_matter_of_permissions(own: Connections) -> None:
    own.redis.set(LIST, "theirs")
    own.redis.sadd("rq:queues", LIST)

    result, answer = doctor()

    found = finding(answer, "conservation")
    assert (result.exit_code, found["verdict"]) == (1, "problem")
    assert found["remedy"].endswith("give it, or jobledger, another Redis database.")


@pytest.mark.parametrize("rule", ["+config", "-config"])
def test_snapshots_are_seen_with_and_without_leave_to_ask(
    own: Connections, user: Callable[..., Connections], rule: str
) -> None:
    less = user("~*", "&*", "+@all", rule)
    own.redis.config_set("save", "3600 1")
    try:

        def seen() -> bool:
            own.redis.save()
            return queues.facts(less.redis).has_snapshots

        eventually(seen, what="a snapshot that is not as old as the server")
    finally:
        own.redis.config_set("save", "")
