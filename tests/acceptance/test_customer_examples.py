"""Every code example of the customer's document works as written."""

import json
import urllib.request
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from customer_jobs import nightly_data_import, nightly_data_update
from harness import Stack, eventually, one_value
from jobledger import Connections, JobHandle, JobStatus, Settings, configure
from jobledger.schedules import scheduler
from jobledger.schedules.triggers import between

MODULES = {"JOBLEDGER_JOB_MODULES": "customer_jobs", "JOBLEDGER_TRUNCATABLE_TABLES": "public.daily_stats"}


def only_job(connections: Connections) -> JobHandle:
    return JobHandle(one_value(connections, "SELECT id FROM job_statuses"), JobStatus.QUEUED, connections)


def test_the_import_job_finds_its_payload(connections: Connections, system: Stack) -> None:
    nightly_data_import()
    job = only_job(connections)
    assert one_value(connections, "SELECT queue FROM job_statuses") == "etl"
    system.worker(**MODULES)
    assert job.wait(30).result == {"source": "external_api", "target": "data_warehouse"}


def test_the_nightly_update_goes_to_the_queue_it_names(
    connections: Connections, settings: Settings, system: Stack
) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE daily_stats (day date)"))
    configure(settings.model_copy(update={"truncatable_tables": ("public.daily_stats",)}))
    nightly_data_update()
    job = only_job(connections)
    assert one_value(connections, "SELECT queue FROM job_statuses") == "low"
    system.worker(**MODULES)
    assert job.wait(30).result == "Table public.daily_stats truncated successfully"


def test_a_job_made_over_http_and_its_status_read_as_the_document_says(connections: Connections, system: Stack) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE daily_stats (day date)"))
        connection.execute(sa.text("INSERT INTO daily_stats VALUES ('2026-01-01')"))
    system.worker(**MODULES)
    api = system.api(**MODULES)
    request = urllib.request.Request(
        f"{api}/create-jobs/",
        data=json.dumps(
            {
                "job": "TruncateTable",
                "payload": {"schema": "public", "table_name": "daily_stats"},
                "queue": "low",
            }
        ).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request) as answer:
        created = json.load(answer)
    assert created["status"] == "enqueued"

    def status() -> dict[str, object]:
        with urllib.request.urlopen(f"{api}/job-status/{created['job_id']}") as answer:
            found: dict[str, object] = json.load(answer)
            return found

    eventually(lambda: status()["status"] == "completed", what="the job")
    found = status()
    assert found["id"] == created["job_id"]
    assert found["result"] == "Table public.daily_stats truncated successfully"
    assert {"created_at", "updated_at"} <= set(found)
    assert one_value(connections, "SELECT count(*) FROM daily_stats") == 0


def test_the_schedules_fire_when_the_document_says() -> None:
    monday = datetime(2026, 1, 5, tzinfo=UTC)
    triggers = {schedule.target: schedule.definition.when.trigger(monday) for schedule in scheduler}
    week = monday + timedelta(days=7)
    imports = list(between(triggers[nightly_data_import], monday, week, 10))
    updates = list(between(triggers[nightly_data_update], monday, week, 10))
    assert [moment.strftime("%a %H:%M") for moment in imports] == [
        f"{day} 01:00" for day in ["Mon", "Tue", "Wed", "Thu", "Fri"]
    ]
    assert [moment.strftime("%H:%M") for moment in updates] == ["02:00"] * 7
