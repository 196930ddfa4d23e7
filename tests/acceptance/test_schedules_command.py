"""`python -m jobledger schedules`: asked on the command line, done by a scheduler that runs beside it."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from harness import Stack, eventually, one_value, stack
from jobledger import Connections, Settings
from jobledger.embedded import EmbeddedServers

PRAGUE = "nightly in Prague"


class Commands:
    """Runs `python -m jobledger schedules …` to its end."""

    def __init__(self, system: Stack) -> None:
        self.system = system

    def __call__(self, *words: str, expect: int = 0) -> str:
        process = self.system.start(sys.executable, "-m", "jobledger", "schedules", *words)
        assert process.wait(60) == expect, process.output()
        return process.output()

    def json(self, *words: str, expect: int = 0) -> Any:
        return json.loads(self(*words, "--json", expect=expect))


@pytest.fixture(scope="module")
def connections(servers: EmbeddedServers) -> Iterator[Connections]:
    """One database for all tests of this module."""
    servers.postgres.create_database("schedules_command", template="template_jobledger")
    url = servers.postgres.url_for("schedules_command")
    made = Connections(Settings(database_url=url, redis_url=servers.redis.url))
    yield made
    made.close()
    servers.postgres.drop_database("schedules_command")


@pytest.fixture(scope="module")
def commands(connections: Connections, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    settings = connections.settings
    environment = {
        "JOBLEDGER_DATABASE_URL": settings.require_database_url(),
        "JOBLEDGER_REDIS_URL": settings.require_redis_url(),
        "JOBLEDGER_JOB_MODULES": "sample_jobs,command_schedules",
    }
    with stack(environment, tmp_path_factory.mktemp("schedules_command")) as system:
        first = system.scheduler()
        eventually(lambda: one_value(connections, "SELECT count(*) FROM schedules") == 2, what="the definitions")
        first.stop()
        yield Commands(system)


@pytest.fixture(scope="module")
def schedules(commands: Commands) -> Commands:
    """With a scheduler that runs."""
    commands.system.scheduler()
    return commands


def test_without_a_scheduler_it_says_that_nothing_will_fire(commands: Commands) -> None:
    assert "No scheduler was seen lately" in commands("list")
    assert "No scheduler was seen lately" in commands("run", "hourly", "--wait", "1s", expect=1)


def test_a_list_says_in_words_when_they_fire(schedules: Commands) -> None:
    shown = schedules("list")
    assert "At 02:30 on Monday through Friday" in shown
    assert "Every 1 hour" in shown

    (hourly, nightly) = schedules.json("list")["schedules"]
    assert (hourly["words"], hourly["state"]) == ("Every 1 hour", "active")
    assert (nightly["expression"], nightly["timezone"]) == ("30 2 * * mon-fri", "Europe/Prague")
    assert nightly["dispatches"] == "Echo"
    assert len(nightly["next"]) == 5
    for time in nightly["next"]:
        local, utc = datetime.fromisoformat(time["local"]), datetime.fromisoformat(time["utc"])
        assert local == utc
        assert local.utcoffset() != utc.utcoffset() == timedelta(0)
        assert local.weekday() < 5


def test_next_shows_the_times_that_come_in_both_time_zones(schedules: Commands) -> None:
    lines = schedules("next", PRAGUE, "-n", "3").splitlines()
    assert lines[0] == f"{PRAGUE}: At 02:30 on Monday through Friday (Europe/Prague); active"
    assert lines[1].split() == ["Europe/Prague", "UTC"]
    assert len(lines) == 5
    assert all(line.split()[1] in ("02:30:00", "03:00:00") for line in lines[2:])


def test_run_fires_now(schedules: Commands, connections: Connections) -> None:
    answer = schedules.json("run", PRAGUE, "--wait", "30s")

    (tick,) = answer["ticks"]
    assert (tick["kind"], tick["outcome"], tick["fire_at"]) == ("manual", "fired", answer["fire_at"])
    dispatched = 'SELECT count(*) FROM job_statuses WHERE fire_at = :at AND payload = \'{"from": "the schedule"}\''
    assert one_value(connections, dispatched, at=tick["fire_at"]) == 1


def test_pause_and_resume(schedules: Commands, connections: Connections) -> None:
    said = schedules("pause", PRAGUE, "--until", "2099-12-24T18:00", "--reason", "the source moves")
    assert said.strip() == f"{PRAGUE} is paused until 2099-12-24 17:00:00 UTC."  # 18:00 in Prague
    (_, nightly) = schedules.json("list")["schedules"]
    assert nightly["state"] == "paused"
    assert nightly["paused"]["reason"] == "the source moves"
    assert "@" in nightly["paused"]["by"]
    assert nightly["next"][0]["utc"] > "2099-12-24T17"
    assert "passed" in schedules("pause", PRAGUE, "--until", "2001-01-01", expect=2)

    assert "is active; it fires next at" in schedules("resume", PRAGUE)
    assert schedules.json("resume", PRAGUE, expect=1)["resumed"] is False
    assert one_value(connections, "SELECT count(*) FROM schedules WHERE paused_at IS NOT NULL") == 0


def test_backfill_twice_is_as_good_as_once(schedules: Commands, connections: Connections) -> None:
    week = ("backfill", PRAGUE, "--from", "2026-03-23", "--to", "2026-03-31")

    assert schedules(*week, "--dry-run").splitlines()[-1] == "6 fire times."
    assert len(schedules.json(*week, "--wait", "60s")["ticks"]) == 6
    assert schedules(*week).strip() == "6 fire times, all of them fired or waiting already."

    fired = "SELECT count(*) FROM job_statuses WHERE fire_at BETWEEN '2026-03-23' AND '2026-03-31'"
    assert one_value(connections, fired) == 6
    assert "more than 10000" in schedules("backfill", "hourly", "--from", "1990-01-01", "--to", "2026-01-01", expect=2)


def test_what_is_not_there_or_makes_no_sense_is_said_in_one_line(schedules: Commands) -> None:
    assert schedules("next", "daily", expect=1).startswith(
        "jobledger: There is no schedule 'daily'; there are: 'hourly'"
    )
    assert '"exit_code": 1' in schedules("run", "daily", "--json", expect=1)
    assert "is no date or time" in schedules("backfill", PRAGUE, "--from", "spring", "--to", "2026-01-01", expect=2)
    assert "no time zone" in schedules("pause", PRAGUE, "--until", "2099-01-01", "--tz", "Mars", expect=2)
