"""The example, as its README runs it: real workers, a real scheduler, all of the data."""

import csv
import gzip
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from harness import REPOSITORY, Process, Stack, eventually, one_value
from jobledger import Connections

EXAMPLE = REPOSITORY / "examples" / "nyc_flights"
DATA = EXAMPLE / "data"


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The settings that the example brings, for a process that runs elsewhere."""
    lines = (EXAMPLE / "settings.env").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name in ("PYTHONPATH", "JOBLEDGER_DATA_DIR"):
        example[name] = str(REPOSITORY / example[name])
    return environment | example


def demo(system: Stack) -> Process:
    process = system.start(sys.executable, "-m", "nyc_flights.demo")
    process.wait(120)
    return process


def rows(table: str) -> list[dict[str, str]]:
    with gzip.open(DATA / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def mean_delays(by: Any) -> dict[Any, tuple[int, float]]:
    """Flights that left, and their mean delay, computed from the files without any database."""
    delays = defaultdict(list)
    for flight in rows("flights"):
        if flight["dep_time"] != "NA":
            delays[by(flight)].append(int(flight["dep_delay"]))
    return {key: (len(some), mean(some)) for key, some in delays.items()}


def check_report(report: dict[str, Any]) -> None:
    assert (report["flights"], report["airlines"]) == (27_004, 16)
    by_airline, routes, by_wind = (table["rows"] for table in report["tables"])

    names = {row["carrier"]: row["name"] for row in rows("airlines")}
    expected = mean_delays(lambda flight: names[flight["carrier"]])
    assert len(by_airline) == 16
    assert sum(flights for _, flights, _, _ in by_airline) == 27_004
    assert {name: (left, pytest.approx(delay, abs=0.051)) for name, _, left, delay in by_airline} == expected

    worst = {key: value for key, value in mean_delays(lambda f: (f["origin"], f["dest"])).items() if value[0] >= 50}
    ranked = sorted(worst, key=lambda key: -worst[key][1])[:10]
    assert [row[0] for row in routes] == [f"{origin} to {destination}" for origin, destination in ranked]

    wind = {(row["origin"], row["time_hour"]): row["wind_speed"] for row in rows("weather")}
    speeds = [wind.get((f["origin"], f["time_hour"]), "NA") for f in rows("flights") if f["dep_time"] != "NA"]
    calm = sum(speed != "NA" and float(speed) < 5 for speed in speeds)
    strong = sum(speed != "NA" and float(speed) >= 30 for speed in speeds)
    assert [by_wind[0][1], by_wind[-2][1], by_wind[-1][1]] == [calm, strong, speeds.count("NA")]


def test_the_demo_imports_all_flights_and_does_so_again(system: Stack, connections: Connections) -> None:
    system.worker()
    system.worker("etl", "low")
    system.scheduler()
    for run in (1, 2):
        process = demo(system)
        output = process.output()
        assert process.popen.returncode == 0, output
        assert "27,004 flights, 16 airlines" in output
        assert output.splitlines()[-1] == "12 jobs completed: 27,004 flights, 16 airlines."
        assert "Load flights.csv.gz         completed  27,004 rows" in output
        with connections.transaction() as connection:
            results = connection.exec_driver_sql(
                "SELECT result FROM job_statuses WHERE job_type = 'FlightReport' ORDER BY id"
            )
            reports = results.scalars().all()
        assert len(reports) == run
        check_report(reports[-1])
        assert one_value(connections, "SELECT count(*) FROM staging.flights") == 27_004
    jobs = "SELECT count(*) FROM job_statuses WHERE status = 'completed' AND attempt = 1"
    assert one_value(connections, jobs) == 24
    attempts = "SELECT count(*) FROM job_attempts WHERE outcome = 'completed' AND number = 1"
    assert one_value(connections, attempts) == 24
    assert one_value(connections, "SELECT count(*) FROM job_attempts") == 24


def test_the_nightly_import_fires_once_with_two_schedulers(system: Stack, connections: Connections) -> None:
    system.worker()
    assert demo(system).popen.returncode == 0  # the tables have to be there
    for _ in range(2):
        system.scheduler()
    eventually(lambda: one_value(connections, "SELECT count(*) FROM schedules") == 1, what="the schedule's row")
    with connections.transaction() as connection:  # as if it had been there last night, and no scheduler had run
        connection.exec_driver_sql(
            "UPDATE schedules SET created_at = created_at - interval '2 days', "
            "decided_until = decided_until - interval '2 days'"
        )
    completed = "SELECT count(*) FROM job_statuses WHERE schedule_id IS NOT NULL AND status = 'completed'"
    eventually(lambda: one_value(connections, completed) == 11, 60, "the nightly import")
    assert one_value(connections, "SELECT count(*) FROM schedule_ticks") == 1
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE schedule_id IS NOT NULL") == 11
    fired = "SELECT DISTINCT fire_at AT TIME ZONE 'America/New_York' FROM job_statuses WHERE schedule_id IS NOT NULL"
    assert one_value(connections, fired).hour == 2


def test_the_demo_fails_if_a_job_does(system: Stack, connections: Connections, tmp_path: Path) -> None:
    data = tmp_path / "broken"
    shutil.copytree(DATA, data)
    (data / "airports.csv.gz").write_bytes(
        gzip.compress(gzip.decompress((DATA / "airports.csv.gz").read_bytes()).replace(b",1044,", b",high,", 1))
    )
    system.environment["JOBLEDGER_DATA_DIR"] = str(data)
    system.worker()
    process = demo(system)
    output = process.output()
    assert process.popen.returncode == 1, output
    assert "line 2, column alt, value 'high': invalid input syntax for type integer" in output
    assert "Report on the flights       canceled  parent" in output
    assert "Not all of the 12 jobs completed." in output
    assert one_value(connections, "SELECT count(*) FROM staging.airports") == 0
    assert one_value(connections, "SELECT count(*) FROM staging.flights") == 27_004
