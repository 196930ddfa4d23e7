"""The API in a process of its own, over HTTP."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from api_jobs import EmptyTable, UniqueImport
from harness import Stack, eventually, one_value, stack
from jobledger import Connections, JobHandle, control
from jobledger.domain.records import Runner
from jobledger.domain.status import PauseKind
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import moves
from jobledger.worker import run_job

EMPTY_TABLE = {"job": "EmptyTable", "payload": {"schema": "public", "table_name": "daily_stats"}}
SEND_REPORT = {
    "job": "reports.send",
    "payload": {"day": "2026-01-31", "to": [{"street": "High Street", "number": 7}], "copies": 3},
}
LATER = {"delay": "1h"}  # nobody runs it during the test


@pytest.fixture(scope="module")
def environment(servers: EmbeddedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One database for this file, because it has one API process: each would need seconds to start."""
    servers.postgres.create_database("web", template="template_jobledger")
    yield {
        "JOBLEDGER_DATABASE_URL": servers.postgres.url_for("web"),
        "JOBLEDGER_REDIS_URL": servers.redis.url,
        "JOBLEDGER_JOB_MODULES": "sample_jobs,api_jobs",
        "JOBLEDGER_DATA_DIR": str(tmp_path_factory.mktemp("data")),
    }
    servers.postgres.drop_database("web")


@pytest.fixture(scope="module")
def url(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with stack(environment, tmp_path_factory.mktemp("api")) as running:
        yield running.api()
        assert "Traceback" not in running.processes[0].output()


@pytest.fixture
def api(url: str, connections: Connections) -> Iterator[httpx.Client]:
    """The API over an empty ledger and an empty Redis."""
    with connections.transaction() as connection:
        connection.execute(sa.text("TRUNCATE job_statuses CASCADE"))
    connections.redis.flushall()
    with httpx.Client(base_url=url, timeout=10) as client:
        yield client


def _status(api: httpx.Client, job_id: str) -> dict[str, Any]:
    answer = api.get(f"/job-status/{job_id}")
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


def _ended(api: httpx.Client, job_id: str) -> dict[str, Any]:
    """The status of a job that has ended."""

    def look() -> dict[str, Any] | None:
        status = _status(api, job_id)
        return status if status["finished_at"] else None

    status = eventually(look, what=f"the end of {job_id}")
    assert status is not None
    return status


def _jobs(connections: Connections) -> int:
    count: int = one_value(connections, "SELECT count(*) FROM job_statuses")
    return count


class TestCreatedJob:
    def test_runs_and_shows_what_the_customer_asked_for(self, api: httpx.Client, system: Stack) -> None:
        answer = api.post("/create-jobs/", json=EMPTY_TABLE | {"queue": "high"})
        assert answer.status_code == 201
        created = answer.json()
        assert created == {"job_id": str(UUID(created["job_id"])), "status": "enqueued", "is_duplicate": False}
        assert answer.headers["Location"] == f"/job-status/{created['job_id']}"
        waiting = _status(api, created["job_id"])
        assert (waiting["status"], waiting["result"], waiting["attempts"]) == ("queued", None, [])

        system.worker("--burst", "high", "default", "low")

        status = _ended(api, created["job_id"])
        assert status["id"] == created["job_id"]
        assert status["status"] == "completed"
        assert status["result"] == "Table public.daily_stats emptied successfully"
        assert status["error"] is None
        assert status["created_at"] < status["updated_at"]
        assert status["created_at"].endswith("Z")
        assert (status["job_type"], status["queue"]) == ("EmptyTable", "high")
        assert status["title"] == "Empty public.daily_stats"
        assert [one["outcome"] for one in status["attempts"]] == ["completed"]

    def test_shows_the_error_of_the_attempt_that_is_followed_by_a_retry(
        self, api: httpx.Client, system: Stack, connections: Connections
    ) -> None:
        job_id = api.post("/create-jobs/", json={"job": "FailsOnce"}).json()["job_id"]
        system.worker("default")
        failed = eventually(lambda: next((s for s in [_status(api, job_id)] if s["status"] == "scheduled"), None))
        assert failed is not None
        assert failed["error"] == {"type": "ValueError", "message": "not yet"}
        assert failed["attempts"][0]["error"] == failed["error"]
        assert "traceback" not in str(failed).lower()

        system.scheduler()
        status = _ended(api, job_id)
        assert (status["status"], status["error"], status["result"]) == ("completed", None, "second time lucky")
        assert [one["outcome"] for one in status["attempts"]] == ["error", "completed"]
        assert status["progress"] == {"done": 3, "total": 3, "note": "done"}
        assert "traceback" not in str(status).lower()

    def test_takes_the_path_without_the_last_slash(self, api: httpx.Client) -> None:
        assert api.post("/create-jobs", json=EMPTY_TABLE).status_code == 201

    def test_takes_the_type_in_the_path(self, api: httpx.Client) -> None:
        answer = api.post("/create-jobs/reports.send", json={"payload": SEND_REPORT["payload"]})
        assert answer.status_code == 201
        assert _status(api, answer.json()["job_id"])["job_type"] == "reports.send"
        assert api.post("/create-jobs/reports.send", json=EMPTY_TABLE).status_code == 422
        assert api.post("/create-jobs/Effect", json={}).status_code == 404

    def test_takes_fields_of_any_name_if_the_job_does(self, api: httpx.Client, connections: Connections) -> None:
        payload = {"self": 1, "cls": 2, "p_limit": 3}
        answer = api.post("/create-jobs/AnyObject", json={"payload": payload})
        assert answer.status_code == 201
        run_job(answer.json()["job_id"])
        assert JobHandle.fetch(answer.json()["job_id"], connections).result == payload

    def test_takes_what_a_type_reads_from_json(self, api: httpx.Client, connections: Connections) -> None:
        payload = {"id": str(UUID(int=1)), "begins": "06:00:00[Europe/Prague]", "more": [1]}
        answer = api.post("/create-jobs/Shift", json={"payload": payload})
        assert answer.status_code == 201
        run_job(answer.json()["job_id"])
        assert JobHandle.fetch(answer.json()["job_id"], connections).result == payload

    def test_takes_options(self, api: httpx.Client, connections: Connections) -> None:
        parent = api.post("/create-jobs/", json=EMPTY_TABLE | LATER).json()["job_id"]
        options = {
            "max_attempts": 7,
            "priority": 2,
            "timeout": "2m",
            "title": "for {nobody:>99999999}",
            "after": [parent],
        }
        job_id = api.post("/create-jobs/", json=EMPTY_TABLE | options).json()["job_id"]
        status = _status(api, job_id)
        assert (status["status"], status["max_attempts"], status["priority"]) == ("deferred", 7, 2)
        assert status["title"] == "for {nobody:>99999999}"
        timeout = one_value(
            connections, "SELECT timeout_seconds FROM job_statuses WHERE id = CAST(:id AS uuid)", id=job_id
        )
        assert timeout == 120
        assert _status(api, parent)["status"] == "scheduled"

    @pytest.mark.parametrize(("mode", "status"), [("cancel", "canceled"), ("run", "queued"), ("hold", "deferred")])
    def test_says_what_becomes_of_it_when_a_parent_fails(
        self, api: httpx.Client, connections: Connections, mode: str, status: str
    ) -> None:
        parent = api.post("/create-jobs/", json=EMPTY_TABLE | LATER).json()["job_id"]
        child = EMPTY_TABLE | {"after": [parent], "on_parent_failure": mode}
        (created,) = api.post("/create-jobs/", json=[child]).json()

        JobHandle.fetch(parent, connections).cancel()

        assert _status(api, created["job_id"])["status"] == status

    def test_tells_what_holds_it(self, api: httpx.Client, connections: Connections) -> None:
        job_id = api.post("/create-jobs/", json=EMPTY_TABLE | {"queue": "held"}).json()["job_id"]
        assert _status(api, job_id)["held_by"] is None
        control.pause(connections, PauseKind.QUEUE, "held", "ann")
        try:
            run_job(job_id)
            status = _status(api, job_id)
        finally:
            control.resume(connections, PauseKind.QUEUE, "held", "ann")
        assert (status["status"], status["held_by"]) == ("queued", "pause:queue:held")
        assert _status(api, job_id)["held_by"] is None

    def test_tells_that_it_is_to_be_canceled_by_whom_and_why(self, api: httpx.Client, connections: Connections) -> None:
        job_id = api.post("/create-jobs/", json=EMPTY_TABLE).json()["job_id"]
        with connections.transaction() as connection:
            moves.claim(connection, UUID(job_id), Runner("worker", "host", 1, "1"), 30)
        assert (_status(api, job_id)["cancel_requested_at"], _status(api, job_id)["cancel_reason"]) == (None, None)

        JobHandle.fetch(job_id, connections).cancel("too large", by="ann")

        status = _status(api, job_id)
        assert (status["status"], status["cancel_reason"]) == ("started", "canceled by ann: too large")
        assert status["cancel_requested_at"] > status["started_at"]


class TestWhatIsThereAlready:
    """Known by its key, or by its payload: they are told apart, and from what is new."""

    def test_is_told_from_what_is_new(self, api: httpx.Client) -> None:
        ask = {"job": "UniqueImport", "payload": {"source": "crm"}}
        first, again = api.post("/create-jobs/", json=ask), api.post("/create-jobs/", json=ask)
        assert (first.status_code, first.json()["is_duplicate"]) == (201, False)
        assert (again.status_code, again.json()) == (201, first.json() | {"is_duplicate": True})
        other = {"job": "UniqueImport", "payload": {"source": "erp"}}
        created = api.post("/create-jobs/", json=[ask, other, other]).json()
        assert [one["is_duplicate"] for one in created] == [True, False, True]

    def test_is_replayed_only_if_its_key_is_known(self, api: httpx.Client) -> None:
        ask = {"job": "UniqueImport", "payload": {"source": "keyed"}}
        first = api.post("/create-jobs/", json=ask).json()
        key = {"Idempotency-Key": "never sent before"}
        equal, again = (api.post("/create-jobs/", json=ask, headers=key) for _ in range(2))
        assert [one.json() for one in (equal, again)] == [first | {"is_duplicate": True}] * 2
        assert ("Idempotency-Replayed" in equal.headers, again.headers["Idempotency-Replayed"]) == (False, "true")

    def test_is_a_conflict_if_its_class_says_so(self, api: httpx.Client, connections: Connections) -> None:
        ask = {"job": "UniqueStrictImport", "payload": {"source": "crm"}}
        job_id = api.post("/create-jobs/", json=ask).json()["job_id"]
        for body in (ask, [EMPTY_TABLE, ask]):
            answer = api.post("/create-jobs/", json=body)
            expected = f"UniqueStrictImport: an equal job, {job_id}, is queued."
            assert (answer.status_code, answer.json()) == (409, {"detail": expected})
        assert _jobs(connections) == 1

    @pytest.mark.timed
    def test_is_a_conflict_in_time_while_another_dispatches_it_and_does_not_end(
        self, api: httpx.Client, connections: Connections
    ) -> None:
        ask = {"job": "UniqueImport", "payload": {"source": "slow"}}
        table = {"schema": "public", "table_name": "slow"}
        many = 18  # more than the API has threads
        with Session(connections.engine) as rival, ThreadPoolExecutor(many) as pool:
            UniqueImport.dispatch(source="slow", session=rival)
            EmptyTable.set(idempotency_scope="api").dispatch(**table, idempotency_key="slow", session=rival)
            began = time.monotonic()
            waiting = [
                pool.submit(api.post, "/create-jobs/", json=ask),
                pool.submit(
                    api.post,
                    "/create-jobs/",
                    json={"job": "EmptyTable", "payload": table},
                    headers={"Idempotency-Key": "slow"},
                ),
            ]
            answers = [one.result() for one in waiting]
            assert time.monotonic() - began < 2
            assert [(one.status_code, one.headers["Retry-After"]) for one in answers] == [(409, "2")] * 2
            assert all("has not ended within" in one.json()["detail"] for one in answers)

            list(pool.map(lambda _: api.post("/create-jobs/", json=ask), range(many)))
            assert api.post("/create-jobs/", json=EMPTY_TABLE).status_code == 201  # the threads are free again
        assert _jobs(connections) == 1
        assert api.post("/create-jobs/", json=ask).json()["is_duplicate"] is False


class TestList:
    def test_creates_all_in_order(self, api: httpx.Client) -> None:
        answer = api.post("/create-jobs/", json=[EMPTY_TABLE, SEND_REPORT, EMPTY_TABLE | {"queue": "etl"}])
        assert answer.status_code == 201
        created = answer.json()
        assert [one["status"] for one in created] == ["enqueued"] * 3
        shown = [_status(api, one["job_id"]) for one in created]
        assert [one["job_type"] for one in shown] == ["EmptyTable", "reports.send", "EmptyTable"]
        assert [one["queue"] for one in shown] == ["low", "default", "etl"]

    def test_creates_none_if_one_is_refused(self, api: httpx.Client, connections: Connections) -> None:
        answer = api.post("/create-jobs/", json=[EMPTY_TABLE, SEND_REPORT | {"payload": {}}])
        assert answer.status_code == 422
        assert "Job 2 of 2" in answer.json()["detail"]
        assert "day: Field required" in answer.json()["detail"]
        assert _jobs(connections) == 0

    @pytest.mark.parametrize("length", [0, 1001])
    def test_has_a_limited_length(self, api: httpx.Client, connections: Connections, length: int) -> None:
        answer = api.post("/create-jobs/", json=[EMPTY_TABLE] * length)
        assert answer.status_code == 422
        assert f"{length:,} jobs" in answer.json()["detail"]
        assert _jobs(connections) == 0

    def test_may_be_long(self, api: httpx.Client, connections: Connections) -> None:
        answer = api.post("/create-jobs/", json=[EMPTY_TABLE] * 1000)
        assert answer.status_code == 201
        assert len({one["job_id"] for one in answer.json()}) == 1000
        assert _jobs(connections) == 1000

    def test_waits_for_one_set_of_parents(self, api: httpx.Client, connections: Connections) -> None:
        parent = api.post("/create-jobs/", json=EMPTY_TABLE | LATER).json()["job_id"]
        child = EMPTY_TABLE | {"after": [parent]}
        assert api.post("/create-jobs/", json=[child, child]).status_code == 201
        answer = api.post("/create-jobs/", json=[child, EMPTY_TABLE])
        assert (answer.status_code, answer.json()["detail"]) == (422, "after must be the same for all jobs of a list.")
        assert _jobs(connections) == 3


REFUSED = {
    "unknown job": ({"job": "DropTable"}, 404, "There is no job 'DropTable'. Available: AnyObject, EmptyTable, "),
    "job that is not for the API": ({"job": "Effect"}, 404, "There is no job 'Effect'. Available: AnyObject, Em"),
    "missing field": ({"job": "EmptyTable", "payload": {"schema": "public"}}, 422, "table_name: Field required"),
    "field of another type": (
        {"job": "EmptyTable", "payload": {"schema": 5, "table_name": "x"}},
        422,
        "schema: Input should be a valid string",
    ),
    "unknown field": (
        {"job": "EmptyTable", "payload": {"schema": "a", "table_name": "b", "cascade": True}},
        422,
        "cascade: Extra inputs are not permitted",
    ),
    "nested field": (
        {"job": "reports.send", "payload": {"day": "2026-01-31", "to": [{"street": "x", "number": 0}]}},
        422,
        "to.0.number: Input should be greater than or equal to 1",
    ),
    "what the job itself refuses": (
        {"job": "EmptyTable", "payload": {"schema": "secret", "table_name": "b"}},
        422,
        "secret.b may not be emptied.",
    ),
    "option inside of the payload": ({"job": "AnyObject", "payload": {"queue": "low"}}, 422, "'queue' cannot be part"),
    "number that is not JSON": ('{"job": "AnyObject", "payload": {"x": NaN}}', 422, "is not JSON"),
    "bad queue": (EMPTY_TABLE | {"queue": "no spaces"}, 422, "queue='no spaces'"),
    "queue that is no text": (EMPTY_TABLE | {"queue": ["low"]}, 422, "queue=['low']"),
    "bad timeout": (EMPTY_TABLE | {"timeout": "soon"}, 422, "timeout='soon' is no length of time"),
    "bad priority": (EMPTY_TABLE | {"priority": "high"}, 422, "priority='high'"),
    "bad attempts": (EMPTY_TABLE | {"max_attempts": 0}, 422, "max_attempts=0"),
    "bad mode": (EMPTY_TABLE | {"on_parent_failure": "stop"}, 422, 'on_parent_failure=\'stop\': say "cancel", "run"'),
    "bad parent": (EMPTY_TABLE | {"after": ["mum"]}, 422, "after='mum'"),
    "unknown parent": (EMPTY_TABLE | {"after": [str(uuid4())]}, 422, "which the ledger does not have"),
    "unknown option": (EMPTY_TABLE | {"owner": "me"}, 422, "owner: Extra inputs are not permitted"),
    "field that is called like a method's own first parameter": (
        {"job": "Shift", "payload": {"id": str(UUID(int=1)), "begins": "06:00", "self": 1}},
        422,
        "Shift: 'self' cannot be a field of the payload",
    ),
    "field that the check cannot be given": (
        {"job": "Shift", "payload": {"id": str(UUID(int=1)), "begins": "06:00", "cls": 1}},
        422,
        "Shift: check_payload cannot be called with this payload: multiple values for argument 'cls'",
    ),
    "field by its own name": (
        {"job": "Shift", "payload": {"id": str(UUID(int=1)), "begins": "06:00", "limit": "x"}},
        422,
        "Shift: limit: Input should be a valid integer",
    ),
    "zone that there is not": (
        {"job": "Shift", "payload": {"id": str(UUID(int=1)), "begins": "06:00:00[Europe/Nowhere]"}},
        422,
        "Shift: begins: Input should be in a valid time format",
    ),
    "no job": ({"payload": {}}, 422, "job: Field required"),
    "payload that is no object": ({"job": "AnyObject", "payload": [1]}, 422, "payload: Input should be a valid dict"),
    "not an object": ('"EmptyTable"', 422, "body: Input should be a valid dictionary"),
    "not JSON": ("job=EmptyTable", 422, "The body is not JSON: Expecting value: line 1 column 1"),
    "not UTF-8": (b"\xff\xfe\xff", 422, "The body is not JSON"),
    "absurd depth": ("[" * 100_000, 422, "The body is not JSON"),
    "absurd number": ("1" * 10_000, 422, "The body is not JSON"),
    "name that is no text": (r'{"job": "AnyObject", "\ud800": 1}', 422, "unable to parse raw data as a unicode string"),
    "value that is no text": (r'{"job": "AnyObject", "payload": {"x": "\ud800"}}', 422, "payload is not JSON"),
}


class TestRefusal:
    @pytest.mark.parametrize(("body", "code", "message"), REFUSED.values(), ids=REFUSED)
    def test_says_what_is_wrong(self, api: httpx.Client, body: Any, code: int, message: str) -> None:
        if isinstance(body, dict):
            answer = api.post("/create-jobs/", json=body)
        else:
            answer = api.post("/create-jobs/", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, list(answer.json())) == (code, ["detail"])
        assert message in answer.json()["detail"]

    @pytest.mark.parametrize("declared", [True, False], ids=["declared", "streamed"])
    def test_of_a_body_that_is_too_large(self, api: httpx.Client, declared: bool) -> None:
        body = b'{"job": "AnyObject", "payload": {"x": "' + b"x" * 3_000_000 + b'"}}'
        content = body if declared else iter([body[:1_500_000], body[1_500_000:]])
        answer = api.post("/create-jobs/", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()) == (413, {"detail": "The body is larger than 2,097,152 bytes."})

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_of_what_any_web_page_could_send(self, api: httpx.Client, content_type: str) -> None:
        answer = api.post("/create-jobs/", content="{}", headers={"Content-Type": content_type})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["detail"]

    def test_of_a_bad_id(self, api: httpx.Client) -> None:
        answer = api.get("/job-status/42")
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("job_id: Input should be a valid UUID")

    def test_of_an_unknown_id(self, api: httpx.Client) -> None:
        unknown = uuid4()
        answer = api.get(f"/job-status/{unknown}")
        assert (answer.status_code, str(unknown) in answer.json()["detail"]) == (404, True)

    def test_of_a_path_or_method_that_is_not_there(self, api: httpx.Client) -> None:
        assert (api.get("/").status_code, api.get("/").json()) == (404, {"detail": "Not Found"})
        assert api.get("/create-jobs/").json() == {"detail": "Method Not Allowed"}


class TestProcess:
    def test_ends_in_good_order_on_sigterm(self, system: Stack) -> None:
        assert httpx.get(system.api() + "/openapi.json").status_code == 200
        (process,) = system.processes
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "Application shutdown complete" in process.output()
