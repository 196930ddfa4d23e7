"""Every command as a real process: what it prints, how it ends, and what it does when a server is away."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from harness import REPOSITORY, TESTS, Stack, eventually
from jobledger import Connections, JobStatus, control
from jobledger.domain.records import Runner
from jobledger.domain.status import PauseKind
from jobledger.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServers, free_port
from jobledger.ledger import moves
from jobledger.ledger.migrate import revisions
from jobledger.worker import run_job
from preloaded import run_process
from sample_jobs import Echo, Effect, Fails

DONE, FAILED, WRONG, AWAY = 0, 1, 2, 3
SECONDS = 60
_numbers = count(1)

Run = Callable[..., "Ended"]


class Ended:
    """A command that has ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def table(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.out.splitlines()]


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Runs a command to its end."""

    def start(*arguments: str, **changes: str) -> Ended:
        path = os.pathsep.join([str(TESTS), str(REPOSITORY)])
        merged = {**os.environ, "PYTHONPATH": path, **environment, **changes}
        done = run_process([sys.executable, "-m", "jobledger", *arguments], merged, TESTS, SECONDS)
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done)

    return start


@pytest.fixture
def no_server() -> str:
    """The URL of a Postgres that is not there."""
    return f"postgresql://no_server:secret@127.0.0.1:{free_port()}/none"


@pytest.fixture
def empty_database(servers: EmbeddedServers) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = f"command_line_{next(_numbers)}"
    servers.postgres.create_database(name)
    yield servers.postgres.url_for(name)
    servers.postgres.drop_database(name)


def failed_job() -> Any:
    handle = Fails.dispatch(error="KeyError")
    with pytest.raises(KeyError):
        run_job(str(handle.id))
    return handle.refresh()


# -- jobs


def test_jobs_are_listed_newest_first_page_by_page(connections: Connections, run: Run) -> None:
    ids = [str(one.id) for one in Echo.dispatch_many([{}] * 5)][::-1]

    first = run("jobs", "list", "--limit", "3", "--json")
    second = run("jobs", "list", "--limit", "3", "--json", "--before", first.json["next"])
    table = run("jobs", "list", "--limit", "5")

    assert (first.code, second.code, table.code) == (DONE, DONE, DONE)
    assert [job["id"] for job in first.json["jobs"]] == ids[:3]
    assert [job["id"] for job in second.json["jobs"]] == ids[3:]
    assert second.json["next"] is None
    assert table.table[0][0] == "ID"
    assert [line[0] for line in table.table[1:]] == ids
    assert f"--before {ids[2]}" in run("jobs", "list", "--limit", "3").err


def test_jobs_are_listed_by_status_type_and_queue(connections: Connections, run: Run) -> None:
    queued, elsewhere, later = Echo.dispatch(), Echo.dispatch(queue="low"), Effect.dispatch_in("1h")
    failed = failed_job()

    def listed(*arguments: str) -> list[str]:
        return [job["id"] for job in run("jobs", "list", "--json", *arguments).json["jobs"]]

    assert listed("--status", "failed") == [str(failed.id)]
    assert listed("--status", "scheduled", "--status", "failed") == [str(failed.id), str(later.id)]
    assert listed("--type", "Echo") == [str(elsewhere.id), str(queued.id)]
    assert listed("--type", "Echo", "--queue", "low", "--status", "queued") == [str(elsewhere.id)]
    assert listed("--type", "Nothing") == []


def test_a_job_is_shown_with_its_attempts(connections: Connections, run: Run) -> None:
    job = failed_job()

    shown = run("jobs", "show", str(job.id))
    more = run("jobs", "show", str(job.id), "--traceback", "--log")
    whole = run("jobs", "show", str(job.id), "--json")
    assert whole.json["job"]["priority"] == 5

    assert (shown.code, more.code, whole.code) == (DONE, DONE, DONE)
    assert ["status", "failed"] in shown.table
    assert "KeyError: 'as asked'" in shown.out
    assert "Traceback (most recent call last)" not in shown.out
    assert "    Traceback (most recent call last)" in more.out
    assert whole.json["job"]["reason"] == "error"
    assert [one["error_type"] for one in whole.json["attempts"]] == ["KeyError"]
    assert "Traceback" in whole.json["attempts"][0]["traceback"]


def test_why_a_job_does_not_run_or_is_about_to_end_is_shown(connections: Connections, run: Run) -> None:
    held, canceled = Echo.dispatch(queue="low"), Echo.dispatch()
    control.pause(connections, PauseKind.QUEUE, "low", "ann")
    run_job(str(held.id))
    with connections.transaction() as connection:
        moves.claim(connection, canceled.id, Runner("worker", "host", 1, "1"), 30)
    canceled.cancel("too large", by="bob")

    listed, shown = run("jobs", "list", "--json").json["jobs"], run("jobs", "show", str(canceled.id)).out

    assert {job["id"]: job["held_by"] for job in listed} == {str(held.id): "pause:queue:low", str(canceled.id): None}
    assert "pause:queue:low" in run("jobs", "list", "--queue", "low").out
    assert "cancel_reason" in shown
    assert "canceled by bob: too large" in shown


def test_what_a_job_says_of_itself_is_never_interpreted(connections: Connections, run: Run) -> None:
    job = Echo.set(title="[red]x\x1b[31m\nID forged").dispatch(key="\u202e")

    for arguments in (("jobs", "list"), ("jobs", "show", str(job.id)), ("jobs", "list", "--json")):
        ended = run(*arguments)
        assert "\x1b" not in ended.out
        assert "\u202e" not in ended.out
        assert not any(line.startswith("ID forged") for line in ended.out.splitlines())
    assert r"[red]x\x1b[31m\nID forged" in run("jobs", "list").out


def test_jobs_are_canceled_and_retried_each_with_an_answer(connections: Connections, run: Run) -> None:
    waits, failed, unknown = Echo.dispatch(), failed_job(), str(uuid4())

    canceled = run("jobs", "cancel", str(waits.id), str(failed.id), unknown, "--reason", "no need", "--json")
    again = run("jobs", "retry", str(waits.id), str(failed.id))
    table = run("jobs", "retry", str(waits.id), str(waits.id))

    assert canceled.code == FAILED
    assert [one["result"] for one in canceled.json["results"]] == ["done", "refused", "not_found"]
    assert (again.code, [line[:2] for line in again.table[1:]]) == (
        DONE,
        [[str(waits.id), "done"], [str(failed.id), "done"]],
    )
    assert (table.code, [line[:2] for line in table.table[1:]]) == (FAILED, [[str(waits.id), "refused"]])
    assert waits.refresh().status is JobStatus.QUEUED


def test_a_canceled_job_says_who_did_it_and_why(connections: Connections, run: Run) -> None:
    job = Echo.dispatch()

    assert run("jobs", "cancel", str(job.id), "--reason", "no need", LOGNAME="ann").code == DONE

    reason = job.refresh().reason
    assert reason is not None
    assert reason.startswith("canceled by ann@")
    assert reason.endswith(": no need")


def test_many_jobs_are_canceled_in_one_command(connections: Connections, run: Run) -> None:
    ids = [str(one.id) for one in Echo.dispatch_many([{}] * 50)]

    ended = run("jobs", "cancel", *ids)

    assert (ended.code, ended.err) == (DONE, "")
    assert [line[:2] for line in ended.table[1:]] == [[one, "done"] for one in ids]


def test_all_that_is_selected_is_canceled_and_retried(connections: Connections, run: Run) -> None:
    some = Echo.dispatch_many([{}] * 25, queue="low")
    other = Echo.dispatch()

    which = ("--type", "Echo", "--queue", "low", "--before-now")
    ended = run("jobs", "cancel", *which, "--yes", "--reason", "no need", "--json")
    assert ended.code == DONE
    moment = ended.json["before"]
    assert {name: ended.json[name] for name in ("selected", "done", "requested", "refused", "not_found")} == {
        "selected": 25, "done": 25, "requested": 0, "refused": 0, "not_found": 0
    }  # fmt: skip
    assert {one.refresh().status for one in some} == {JobStatus.CANCELED}
    assert other.refresh().status is JobStatus.QUEUED

    assert run("jobs", "retry", "--status", "canceled", "--before", moment).table[1][0] == "0", "nothing to ask about"
    assert run("jobs", "retry", "--status", "canceled", "--before-now", "--yes").table == [
        ["SELECTED", "DONE", "REQUESTED", "REFUSED", "NOT_FOUND"], ["25", "25", "0", "0", "0"]
    ]  # fmt: skip
    assert {one.refresh().status for one in some} == {JobStatus.QUEUED}


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel"],
        ["cancel", str(uuid4()), "--before-now"],
        ["cancel", "--queue", "low"],
        ["retry", "--before-now", "--before", "2026-01-31T12:00:00+00:00"],
        ["retry", "--before", "2026-01-31T12:00:00"],
        ["retry", "--status", "started", "--before-now"],
        ["cancel", "--before-now", "--yes"],
        ["retry", "--before-now", "--yes"],
        ["cancel", "--before", "2026-01-31T12:00:00+00:00", "--yes"],
        ["cancel", "--all", "--queue", "low", "--before-now", "--yes"],
        ["cancel", "--all", "--yes"],
        ["cancel", str(uuid4()), "--dry-run"],
    ],
)
def test_what_does_not_say_clearly_which_jobs_does_nothing(run: Run, arguments: list[str]) -> None:
    assert run("jobs", *arguments).code == WRONG


def test_all_jobs_are_meant_only_if_that_is_said_and_somebody_agrees(
    connections: Connections, run: Run, environment: dict[str, str]
) -> None:
    jobs = [Echo.dispatch(), Echo.dispatch(queue="low"), Effect.dispatch_in("1h")]
    all_of_them = ("jobs", "cancel", "--all", "--before-now")

    unasked = run(*all_of_them)
    assert (unasked.code, "Cancel 3 jobs" in unasked.err, "--yes" in unasked.err) == (WRONG, True, True)
    looked = run(*all_of_them, "--dry-run")
    assert looked.table[:-1] == [
        ["STATUS", "TYPE", "QUEUE", "JOBS"],
        ["queued", "Echo", "default", "1"],
        ["queued", "Echo", "low", "1"],
        ["scheduled", "Effect", "default", "1"],
    ]
    assert run(*all_of_them, "--dry-run", "--json").json["groups"][1] == {
        "status": "queued", "job_type": "Echo", "queue": "low", "jobs": 1
    }  # fmt: skip
    assert answered(environment, "n", *all_of_them).code == FAILED
    assert JobStatus.CANCELED not in {one.refresh().status for one in jobs}

    assert answered(environment, "y", *all_of_them).table[1][:2] == ["3", "3"]
    assert {one.refresh().status for one in jobs} == {JobStatus.CANCELED}


def answered(environment: dict[str, str], answer: str, *arguments: str) -> Ended:
    """A command that asks somebody at a terminal."""
    ours, theirs = os.openpty()
    os.write(ours, f"{answer}\n".encode())
    try:
        return Ended(
            subprocess.run(
                [sys.executable, "-m", "jobledger", *arguments],
                env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
                stdin=theirs,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        )
    finally:
        os.close(theirs)
        os.close(ours)


def test_what_many_jobs_were_refused_for_is_said(connections: Connections, run: Run) -> None:
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    parent.cancel()
    parent.retry()

    ended = run("jobs", "retry", "--status", "canceled", "--before-now", "--yes")

    assert (ended.code, ended.table[1]) == (DONE, ["1", "0", "0", "1", "0"])
    assert f"refused, 1 times: its parent {parent.id} is queued" in ended.err
    assert child.refresh().status is JobStatus.CANCELED


def test_a_pause_of_what_nobody_knows_asks_whether_it_is_spelt_right(connections: Connections, run: Run) -> None:
    Echo.set(queue="odd").dispatch()

    for known in (["odd"], ["low"], ["Echo", "--type"], ["Fails", "--type"]):
        assert run("queues", "pause", *known).err == ""
    for unknown in (["lwo"], ["Ehco", "--type"]):
        ended = run("queues", "pause", *unknown)
        assert (ended.code, ended.out.startswith("The ")) == (DONE, True)
        assert f"`queues resume {' '.join(unknown)}` ends the pause" in ended.err


def test_queues_and_types_are_paused_and_resumed(connections: Connections, run: Run) -> None:
    assert run("queues", "pause", "low", "--reason", "no room", LOGNAME="ann").out.startswith(
        "The queue low is paused by ann@"
    )
    assert run("queues", "pause", "Echo", "--type", LOGNAME="ann").code == DONE
    Echo.dispatch(queue="low")
    held = Echo.dispatch(queue="odd")
    assert "held" in run_job(str(held.id))

    listed = run("queues", "list", "--json", JOBLEDGER_QUEUES="high,low").json["queues"]

    assert [(one["kind"], one["name"], one["queued"], one["held"]) for one in listed] == [
        ("queue", "high", 0, 0), ("queue", "low", 1, 0), ("queue", "odd", 0, 1), ("type", "Echo", 1, 1)
    ]  # fmt: skip
    assert [one["paused"] and one["paused"]["reason"] for one in listed] == [None, "no room", None, None]
    assert run("queues", "list").table[0][:3] == ["KIND", "NAME", "STATE"]

    resumed = run("queues", "resume", "Echo", "--type", "--json")
    assert (resumed.code, resumed.json["released"]) == (DONE, 1)
    again = run("queues", "resume", "Echo", "--type")
    assert (again.code, again.err) == (FAILED, "jobledger: the type Echo is not paused\n")
    assert run("queues", "pause", "no such name").code == WRONG


def test_what_cannot_be_done_has_an_exit_code_and_an_error_for_programs(
    run: Run, no_server: str, empty_database: str
) -> None:
    job = str(uuid4())
    for code, arguments, changes in [
        (FAILED, ["jobs", "show", job], {}),
        (WRONG, ["jobs", "show", "5"], {}),
        (WRONG, ["jobs", "list", "--status", "lost"], {}),
        (WRONG, ["jobs", "list"], {"JOBLEDGER_DATABASE_URL": "mysql://x"}),
        (WRONG, ["jobs", "list"], {"JOBLEDGER_API_PORT": "many"}),
        (WRONG, ["jobs", "list"], {"JOBLEDGER_DATABASE_URL": empty_database}),
        (AWAY, ["jobs", "list"], {"JOBLEDGER_DATABASE_URL": no_server}),
        (AWAY, ["jobs", "cancel", job], {"JOBLEDGER_DATABASE_URL": no_server}),
    ]:
        ended = run(*arguments, "--json", **changes)
        assert ended.code == code, (arguments, changes, ended.err)
        assert ended.err.splitlines()[-1].startswith("Error: " if "Usage:" in ended.err else "jobledger: ")
        assert "secret" not in ended.err + ended.out
        if arguments[1] == "cancel":
            assert [one["result"] for one in ended.json["results"]] == ["unknown"]
        else:
            assert ended.json["error"]["exit_code"] == code
            assert ended.json["error"]["message"] in ended.err


def test_an_error_is_one_line_for_people(run: Run) -> None:
    job = uuid4()

    ended = run("jobs", "show", str(job))

    assert (ended.code, ended.out) == (FAILED, "")
    assert ended.err == f"jobledger: There is no job {job}: never dispatched, rolled back, or pruned.\n"


# -- check


def test_a_good_configuration_is_shown_without_any_server(run: Run, no_server: str) -> None:
    changes = {"JOBLEDGER_DATABASE_URL": no_server, "JOBLEDGER_JOB_MODULES": "sample_jobs,sample_schedules"}

    table, whole = run("check", **changes), run("check", "--json", **changes)

    assert (table.code, whole.code) == (DONE, DONE)
    echo = next(one for one in whole.json["job_types"] if one["type"] == "Echo")
    assert (echo["queue"], echo["priority"], echo["timeout_seconds"], echo["max_attempts"]) == ("default", 5, 600, 1)
    assert "every second" in [one["name"] for one in whole.json["schedules"]]
    assert (whole.json["problems"], whole.json["warnings"]) == ([], [])
    assert ["Echo", "default", "600", "s", "1"] in [line[:5] for line in table.table]


def test_a_queue_without_workers_is_warned_about(run: Run) -> None:
    ended = run("check", "--json", JOBLEDGER_QUEUES="high")

    assert ended.code == DONE
    assert any("Echo goes to the queue 'default'" in text for text in ended.json["warnings"])


def test_each_job_module_that_cannot_be_loaded_is_a_problem(run: Run) -> None:
    ended = run("check", "--json", JOBLEDGER_JOB_MODULES="no_such,sample_jobs,nor_this")

    assert ended.code == FAILED
    assert [word for text in ended.json["problems"] for word in ("no_such", "nor_this") if word in text] == [
        "no_such",
        "nor_this",
    ]
    assert "Echo" in [one["type"] for one in ended.json["job_types"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBLEDGER_DATABASE_URL", "secret"),
        ("JOBLEDGER_DATABASE_URL", "postgresql+asyncpg://ann:secret@db/jobs"),
        ("JOBLEDGER_REDIS_URL", "http://:secret@redis"),
        ("JOBLEDGER_REDIS_URL", "redis://:secret@redis:port/0"),
    ],
)
def test_a_wrong_url_is_a_wrong_setting_and_its_password_is_not_shown(run: Run, name: str, value: str) -> None:
    ended = run("check", **{name: value})

    assert ended.code == WRONG
    assert f"problem: {name}" in ended.out
    assert "secret" not in ended.out + ended.err


def test_a_wrong_setting_is_said_at_once(run: Run) -> None:
    ended = run("check", "--json", JOBLEDGER_LEASE_SECONDS="0")

    assert ended.code == WRONG
    assert "JOBLEDGER_LEASE_SECONDS" in ended.json["error"]["message"]


# -- migrate


def test_two_migrations_at_once_are_one(empty_database: str, system: Stack, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{number}.json" for number in range(2)]
    both = [
        system.start(
            "sh", "-c", f"exec {sys.executable} -m jobledger migrate --json >{out}", JOBLEDGER_DATABASE_URL=url
        )
        for out, url in zip(outputs, [empty_database] * 2, strict=True)
    ]

    assert [one.wait(SECONDS) for one in both] == [DONE, DONE], [one.output() for one in both]
    said = [json.loads(out.read_text()) for out in outputs]
    assert sorted(one["ran"] for one in said) == [[], list(revisions()[::-1])]
    assert {one["to"] for one in said} == {revisions()[0]}


def test_a_migration_says_what_it_did(run: Run, empty_database: str) -> None:
    changes = {"JOBLEDGER_DATABASE_URL": empty_database}
    newest, oldest = revisions()[0], revisions()[-1]

    assert run("migrate", "--to", oldest, **changes).out == f"Migrated the schema from nothing to {oldest}.\n"
    assert run("migrate", "--json", **changes).json["to"] == newest
    again = run("migrate", **changes)
    assert (again.code, again.out) == (DONE, f"Nothing to do: the schema is at {newest}.\n")


def test_a_newer_schema_is_left_as_it_is(run: Run, connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    ended = run("migrate")

    assert (ended.code, ended.out) == (
        DONE,
        "Nothing to do: the schema is at 9999, of a newer version than this one.\n",
    )


def test_a_migration_waits_for_postgres(tmp_path: Path, system: Stack) -> None:
    postgres = EmbeddedPostgres(tmp_path / "postgres", persistent=False)
    postgres.start()
    url = postgres.url
    postgres.stop()
    try:
        migration = system.start(sys.executable, "-m", "jobledger", "migrate", JOBLEDGER_DATABASE_URL=url)
        eventually(lambda: "waiting up to 60 s" in migration.output(), what="it says that it waits")

        postgres.restart()

        assert migration.wait(SECONDS) == DONE, migration.output()
    finally:
        postgres.stop()
    assert migration.output().count("waiting") == 1
    assert "Migrated the schema from nothing" in migration.output()


def test_a_migration_does_not_wait_longer_than_it_may(run: Run, no_server: str) -> None:
    ended = run("migrate", "--wait", "1s", "--json", JOBLEDGER_DATABASE_URL=no_server)

    assert ended.code == AWAY
    assert ended.json["error"]["message"].startswith("No answer within 1 s. Postgres is away: ")


@pytest.mark.parametrize("change", [("jobledger:", "no_server:"), ("/command_line", "/no_such")])
def test_a_migration_does_not_wait_for_what_will_not_heal(
    run: Run, empty_database: str, change: tuple[str, str]
) -> None:
    ended = run("migrate", JOBLEDGER_DATABASE_URL=empty_database.replace(*change))

    assert ended.code == WRONG
    assert ended.err.startswith("jobledger: JOBLEDGER_DATABASE_URL: ")
    assert "waiting" not in ended.err


def test_a_migration_to_nowhere_is_a_wrong_usage(run: Run) -> None:
    assert run("migrate", "--to", "nowhere").code == WRONG
    assert run("migrate", "--wait", "soon").code == WRONG


# -- worker


def test_a_worker_becomes_rq_s_with_our_settings(connections: Connections, system: Stack) -> None:
    high, low = Echo.dispatch(queue="high", by="me"), Echo.dispatch(queue="low")

    worker = system.start(
        sys.executable, "-m", "jobledger", "worker", "high", "--", "--burst", "--name", "mine",
        RQ_REDIS_URL=f"redis://127.0.0.1:{free_port()}",
    )  # fmt: skip

    assert worker.wait(SECONDS) == DONE, worker.output()
    assert high.refresh().result == {"by": "me"}
    assert [one.worker for one in high.attempts] == ["mine"]
    assert low.refresh().status is JobStatus.QUEUED


def test_a_worker_takes_from_the_queues_of_the_settings(connections: Connections, system: Stack) -> None:
    jobs = [Echo.dispatch(queue=queue) for queue in ("special", "low")]

    worker = system.start(
        sys.executable, "-m", "jobledger", "worker", "--", "--burst", JOBLEDGER_QUEUES="special,other"
    )

    assert worker.wait(SECONDS) == DONE, worker.output()
    assert [job.refresh().status for job in jobs] == [JobStatus.COMPLETED, JobStatus.QUEUED]


def test_a_worker_waits_for_redis(tmp_path: Path, system: Stack, connections: Connections, run: Run) -> None:
    redis = EmbeddedRedis(tmp_path / "redis", persistent=False)
    redis.start()
    url = redis.url
    redis.stop()
    try:
        worker = system.start(sys.executable, "-m", "jobledger", "worker", JOBLEDGER_REDIS_URL=url)
        eventually(lambda: "waiting for it" in worker.output(), what="it says that it waits")
        assert worker.popen.poll() is None
        away = run("health", "worker", JOBLEDGER_REDIS_URL=url)
        assert (away.code, away.out.startswith("Redis is away")) == (FAILED, True)
        alive = run("health", "worker", "--alive", "--pid", str(worker.pid), JOBLEDGER_REDIS_URL=url)
        assert (alive.code, alive.out) == (DONE, f"worker runs (process {worker.pid})\n")

        redis.restart()

        eventually(lambda: "Listening on" in worker.output() or worker.popen.poll() is not None, what="RQ's worker")
        assert worker.output().count("waiting for it") == 1
        here = run("health", "worker", "--pid", str(worker.pid), "--json", JOBLEDGER_REDIS_URL=url)
        assert (here.code, here.json["healthy"]) == (DONE, True)
        worker.signal(signal.SIGTERM)  # the process is the same one, and RQ's by now
        assert worker.wait(SECONDS) == DONE
    finally:
        redis.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_waits_ends_when_it_is_told_to(system: Stack, number: signal.Signals) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    worker = system.start(sys.executable, "-m", "jobledger", "worker", JOBLEDGER_REDIS_URL=url)
    eventually(lambda: "waiting for it" in worker.output(), what="it waits")

    worker.signal(number)

    assert worker.wait(SECONDS) == DONE
    assert "Traceback" not in worker.output()


def test_a_worker_with_wrong_settings_does_not_begin(run: Run, redis_url: str) -> None:
    rest = redis_url.split("@")[1]
    for arguments, changes, words in [
        ([], {"JOBLEDGER_JOB_MODULES": "no_such"}, "no_such"),
        ([], {"JOBLEDGER_REDIS_URL": "http://redis"}, "JOBLEDGER_REDIS_URL"),
        ([], {"JOBLEDGER_REDIS_URL": f"redis://:wrong@{rest}"}, "JOBLEDGER_REDIS_URL: "),
        ([], {"JOBLEDGER_REDIS_URL": f"redis://{rest}"}, "JOBLEDGER_REDIS_URL: "),
        ([], {"JOBLEDGER_DATABASE_URL": "nothing"}, "JOBLEDGER_DATABASE_URL"),
        (["--burst"], {}, "--burst"),
    ]:
        ended = run("worker", *arguments, **changes)
        assert ended.code == WRONG, (changes, ended.err)
        assert words in ended.err


# -- health


def numbers_in(words: str) -> set[int]:
    """The processes that an answer names: also those of other tests, if some run beside this one."""
    return {int(one) for one in re.findall(r"\d+", words)}


@pytest.fixture
def own_name() -> str:
    """A worker's name that no other test on this machine has."""
    return f"worker-{uuid4().hex}"


def test_a_worker_that_was_killed_is_not_healthy(run: Run, system: Stack, own_name: str) -> None:
    system.fresh = True
    none = "no such worker runs on this machine; if another command started it, give its --pid\n"
    assert run("health", "worker", "--name", own_name).out == none
    worker = system.worker("--name", own_name)
    assert run("health", "worker", "--name", own_name).code == DONE
    assert run("health", "worker").code == DONE
    assert run("health", "worker", "--name", "other").code == FAILED
    assert run("health", "worker", "--max-age", "0").code == FAILED
    assert run("health", "worker", "--alive", "--name", own_name).out == f"worker runs (process {worker.pid})\n"

    worker.kill_tree()

    ended = run("health", "worker")
    assert (ended.code, ended.out) == (FAILED, f"worker {own_name} (process {worker.pid}) gives no sign of life\n")
    for asked in (["--name", own_name], ["--pid", str(worker.pid)]):
        ended = run("health", "worker", "--alive", *asked)
        assert (ended.code, ended.out) == (FAILED, none)


RQ = ["worker", "-c", "jobledger.rq_config", "--name", "NAME", "default"]


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "jobledger", "worker", "default", "--", "--name", "NAME"],
        [str(Path(sys.executable).parent / "rq"), *RQ],
        [sys.executable, "-m", "rq.cli", *RQ],
    ],
    ids=["ours", "stock", "module"],
)
def test_a_worker_that_redis_has_forgotten_is_healthy(
    connections: Connections, run: Run, system: Stack, command: list[str], own_name: str
) -> None:
    system.fresh = True
    worker = system.start(*(own_name if word == "NAME" else word for word in command))
    eventually(lambda: "Listening on" in worker.output() or worker.popen.poll() is not None, 60, "RQ's worker")
    assert run("health", "worker", "--name", own_name).out == f"worker {own_name} (process {worker.pid}) works\n"

    connections.redis.flushall()

    for asked in (["--name", own_name], ["--pid", str(worker.pid)]):
        ended = run("health", "worker", *asked)
        assert (ended.code, ended.out.startswith(f"worker process {worker.pid} runs; ")) == (DONE, True)
    assert worker.pid in numbers_in(run("health", "worker", "--alive").out)


def test_a_worker_and_a_scheduler_are_alive_while_both_servers_are_away(
    run: Run, system: Stack, no_server: str, tmp_path: Path, own_name: str
) -> None:
    system.fresh = True
    redis = EmbeddedRedis(tmp_path / "redis", persistent=False)
    redis.start()
    away = {"JOBLEDGER_REDIS_URL": redis.url, "JOBLEDGER_DATABASE_URL": no_server}
    try:
        ours = [sys.executable, "-m", "jobledger", "worker", "--", "--name", own_name]  # a stock one might end
        worker = system.start(*ours, JOBLEDGER_REDIS_URL=redis.url)
        eventually(lambda: "Listening on" in worker.output() or worker.popen.poll() is not None, 60, "RQ's worker")
    finally:
        redis.stop()
    scheduler = system.start(sys.executable, "-m", "jobledger", "scheduler", **away)
    eventually(
        lambda: "Scheduler started" in scheduler.output() or scheduler.popen.poll() is not None, 60, "the scheduler"
    )

    for arguments, pid in [(["worker", "--name", own_name], worker.pid), (["scheduler"], scheduler.pid)]:
        alive = run("health", *arguments, "--alive", **away)
        assert (alive.code, pid in numbers_in(alive.out)) == (DONE, True), alive.out
        assert run("health", *arguments, **away).code == FAILED

    scheduler.kill_tree()

    ended = run("health", "scheduler", "--alive", "--pid", str(scheduler.pid), **away)
    assert (ended.code, ended.out.startswith("no such scheduler")) == (FAILED, True)
    assert scheduler.pid not in numbers_in(run("health", "scheduler", "--alive", **away).out)
    worker.kill_tree()  # one that waits for Redis takes its time to end


def test_the_api_is_healthy_when_it_accepts_jobs(run: Run, system: Stack, no_server: str) -> None:
    port = system.api().rsplit(":", 1)[1]
    ended = run("health", "api", "--port", port, http_proxy="http://127.0.0.1:1")
    assert (ended.code, ended.out) == (DONE, "the API is degraded\n")  # no_server repairs: no scheduler runs
    assert run("health", "api", "--json", JOBLEDGER_API_PORT=port).json["healthy"] is True

    port = system.api(JOBLEDGER_DATABASE_URL=no_server).rsplit(":", 1)[1]
    ended = run("health", "api", "--port", port)
    assert (ended.code, ended.out) == (FAILED, f"http://127.0.0.1:{port}/health answers 503\n")

    ended = run("health", "api", "--port", str(free_port()))
    assert (ended.code, len(ended.out.splitlines())) == (FAILED, 1)
