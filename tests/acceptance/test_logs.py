"""What processes of ours log, as programs and people read it."""

import contextlib
import json
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from harness import Process, Stack, eventually
from jobledger import Connections, JobHandle, JobStatus
from sample_jobs import Echo, Logs, LogsAsync

HOSTILE = "a\n2026-01-01T00:00:00.000Z INFO    fake: line\r\x1b[2J\u202e\u2028\x9b{}%s"
NOT_ALLOWED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
RECORD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +[\w.]+( \[[^]]+\])?: ")
JSON = {"JOBLEDGER_LOG_FORMAT": "json"}


def records(process: Process) -> list[dict[str, Any]]:
    """All that a process has written; each line must be an object of its own."""
    whole_lines, _, _ = process.output().rpartition("\n")
    found = [json.loads(line) for line in whole_lines.split("\n") if whole_lines]
    assert all({"time", "level", "logger", "event"} <= record.keys() for record in found)
    return found


def records_of(process: Process, job: JobHandle, attempt: int, job_type: str) -> list[dict[str, Any]]:
    """The lines of one run; each says all that is to be said of it."""
    found = [one for one in records(process) if one.get("job_id") == str(job.id) and one.get("attempt") == attempt]
    for one in found:
        assert (one["job_type"], one["queue"]) == (job_type, "default")
        assert 0 <= one["duration_seconds"] < 60
    return found


def events(found: list[dict[str, Any]], logger: str) -> list[tuple[str, str]]:
    return [(one["event"].split(":")[0], one["status"]) for one in found if one["logger"] == logger]


def has_ended_runs(process: Process, count: int) -> bool:
    """RQ's last line about a run."""
    return process.output().count("result is kept") >= count


def test_every_line_of_a_run_says_whose_it_is(connections: Connections, system: Stack) -> None:
    worker, scheduler = system.worker(**JSON), system.scheduler(JOBLEDGER_RELAY_SECONDS="0.2", **JSON)
    job = Logs.dispatch(text=HOSTILE)
    assert job.wait(30).status is JobStatus.COMPLETED
    eventually(lambda: has_ended_runs(worker, 2), what="the end of both runs")

    first, second = records_of(worker, job, 1, "Logs"), records_of(worker, job, 2, "Logs")
    assert events(first, "jobledger.job") == events(second, "jobledger.job") == [("by the job", "started")]
    said_by_library = [("by a library", "started"), ("in a thread", "started")]
    assert events(first, "some.library") == events(second, "some.library") == said_by_library
    assert events(first, "jobledger.worker.completer") == [("Will run again", "scheduled")]
    assert events(second, "jobledger.worker.completer") == [("Completed", "completed")]
    assert {status for _, status in events(first, "rq.worker")} == {"scheduled"}
    assert {status for _, status in events(second, "rq.worker")} == {"completed"}
    assert first[0]["text"] == HOSTILE + "\x00\\ud800"
    [raised] = [one["exception"] for one in first if "exception" in one]
    assert "RuntimeError: a\n2026" in raised
    durations = [one["duration_seconds"] for one in first]
    assert durations == sorted(durations)
    [seen_by_parent, *_] = [one for one in records(worker) if HOSTILE in one["event"]]
    assert (seen_by_parent["logger"], seen_by_parent["job_id"]) == ("rq.worker", str(job.id))

    for process in (worker, scheduler):
        process.signal(signal.SIGTERM)
        process.wait()
    assert not NOT_ALLOWED.search(worker.output())
    assert records(worker)
    assert [one["event"] for one in records(scheduler) if one["event"].startswith("Scheduler")]


def test_the_same_for_people_stays_one_record_each(connections: Connections, system: Stack) -> None:
    worker = system.worker()
    job = Logs.set(max_attempts=1).dispatch(text=HOSTILE, fail=True)
    assert job.wait(30).status is JobStatus.FAILED
    eventually(lambda: "exception raised while executing" in worker.output(), what="RQ's word on it")
    worker.stop()

    output = worker.output()
    assert not NOT_ALLOWED.search(output)
    lines = output[:-1].split("\n")
    assert all(RECORD.match(line) or line.startswith("  | ") for line in lines)
    assert RECORD.match(lines[0])
    run = f"[job_id={job.id} job_type=Logs attempt=1 queue=default duration_seconds="
    of_run = [line for line in lines if run in line]
    assert [line.split("]: ")[1].split(" text=")[0] for line in of_run if " jobledger.job " in line] == ["by the job"]
    assert any(" status=failed]: Failed outcome='error' error_type='RuntimeError'" in line for line in of_run)
    assert any(" rq.worker " in line and " status=failed]: " in line for line in of_run)
    assert "  | 2026-01-01T00:00:00.000Z INFO    fake: line" in output  # RQ's traceback, marked as such


def test_what_libraries_log_is_kept_with_the_attempt(connections: Connections, system: Stack) -> None:
    system.worker()
    job = LogsAsync.dispatch().wait(30)

    assert job.attempts[0].log_tail == (
        "INFO some.library: in a coroutine\nINFO some.library: in the coroutine's thread"
    )


def test_a_worker_that_lives_on_says_nothing_of_a_run_that_is_over(connections: Connections, system: Stack) -> None:
    worker = system.worker("-w", "rq.SimpleWorker", "default", **JSON)
    first = LogsAsync.dispatch().wait(30)
    second = Echo.dispatch().wait(30)
    eventually(lambda: has_ended_runs(worker, 2), what="the end of both runs")

    assert events(records_of(worker, first, 1, "LogsAsync"), "some.library") == [
        ("in a coroutine", "started"),
        ("in the coroutine's thread", "started"),
    ]
    for job, job_type in ((first, "LogsAsync"), (second, "Echo")):
        assert events(records_of(worker, job, 1, job_type), "jobledger.worker.completer") == [
            ("Completed", "completed")
        ]
    by_rq = [one for one in records(worker) if one["logger"] == "rq.worker"]
    assert not [one for one in by_rq if "attempt" in one]
    [last] = [one for one in by_rq if "Job OK" in one["event"] and str(second.id) in one["event"]]
    assert last["job_id"] == str(second.id)


def test_a_worker_without_our_configuration_logs_runs_as_the_settings_say(
    connections: Connections, system: Stack, redis_url: str
) -> None:
    rq = str(Path(sys.executable).parent / "rq")
    worker = system.start(rq, "worker", "--url", redis_url, "default", **JSON)
    job = LogsAsync.dispatch().wait(30)
    eventually(lambda: has_ended_runs(worker, 1), what="the end of the run")

    ours = [json.loads(line) for line in worker.output().splitlines() if line.startswith("{")]
    of_run = [one for one in ours if one.get("job_id") == str(job.id) and one.get("attempt") == 1]
    assert [one["event"] for one in of_run if one["logger"] == "some.library"] == [
        "in a coroutine",
        "in the coroutine's thread",
    ]
    assert {one["status"] for one in of_run if one["logger"] == "rq.worker"} == {"completed"}


def test_every_line_of_the_api_is_an_object(connections: Connections, system: Stack) -> None:
    url = system.api(**JSON)
    process = system.processes[-1]
    for path in ("/health", "/job-status/%0A2026%1B[2J?x=%E2%80%AE"):
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(url + path).close()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0

    loggers = {one["logger"] for one in records(process)}
    assert {"uvicorn.access", "uvicorn.error"} <= loggers
    assert not NOT_ALLOWED.search(process.output())
