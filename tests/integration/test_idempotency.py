"""Dispatching with a key: what is sent again is dispatched once."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from harness import Process, Stack, eventually, one_value
from jobledger import (
    BaseJob,
    Connections,
    DispatchContended,
    DispatchRefused,
    IdempotencyConflict,
    JobStatus,
    OptionError,
    ParentNotFound,
)
from jobledger.domain.payload import fingerprint
from jobledger.maintenance.prune import prune
from jobledger.worker import run_job
from sample_jobs import Echo, Effect

pytestmark = pytest.mark.one_database  # each uses keys of its own


class Keyed(BaseJob):
    def _perform(self, source: str, rows: int = 5) -> str:
        return source


def count(connections: Connections, key: str) -> int:
    return int(one_value(connections, "SELECT count(*) FROM job_statuses WHERE idempotency_key = :key", key=key))


def execute(connections: Connections, statement: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(statement), parameters)


def pushed(connections: Connections) -> list[str]:
    return [one.decode() for one in connections.redis.lrange("rq:queue:default", 0, -1)]


# -- the same again


def test_the_same_again_gives_back_the_first_job(connections: Connections) -> None:
    first = Keyed.dispatch(source="crm", idempotency_key="same")
    again = Keyed.dispatch(rows=5, source="crm", idempotency_key="same")

    assert (again.id, again.status) == (first.id, JobStatus.QUEUED)
    assert (first.is_duplicate, again.is_duplicate) == (False, True)
    assert count(connections, "same") == 1
    assert pushed(connections).count(str(first.id)) == 1


def test_its_present_status_comes_with_it(connections: Connections) -> None:
    first = Keyed.dispatch(source="crm", idempotency_key="status")
    run_job(str(first.id))

    assert Keyed.dispatch(source="crm", idempotency_key="status").status is JobStatus.COMPLETED


def test_a_job_that_was_pruned_has_no_status_and_is_not_dispatched_again(connections: Connections) -> None:
    first = Keyed.dispatch(source="crm", idempotency_key="pruned")
    execute(connections, "DELETE FROM job_statuses WHERE id = :id", id=first.id)

    again = Keyed.dispatch(source="crm", idempotency_key="pruned")

    assert (again.id, again.status, again.is_duplicate) == (first.id, None, True)


def test_the_row_says_its_key(connections: Connections) -> None:
    job = Keyed.set(idempotency_key="kept", idempotency_scope="billing").dispatch(source="crm")

    sql = "SELECT idempotency_scope || '/' || idempotency_key FROM job_statuses WHERE id = :id"
    assert one_value(connections, sql, id=job.id) == "billing/kept"


def test_each_scope_has_keys_of_its_own(connections: Connections) -> None:
    mine = Keyed.dispatch(source="crm", idempotency_key="scoped")
    others = Keyed.set(idempotency_key="scoped", idempotency_scope="other").dispatch(source="crm")

    assert mine.id != others.id
    assert not others.is_duplicate


def test_a_duplicate_gets_no_parents(connections: Connections) -> None:
    first = Keyed.dispatch(source="crm", idempotency_key="child")

    again = Keyed.dispatch(source="crm", idempotency_key="child", after=Echo.dispatch())

    assert (again.id, again.status) == (first.id, JobStatus.QUEUED)
    assert one_value(connections, "SELECT count(*) FROM job_dependencies WHERE child_id = :id", id=first.id) == 0


@pytest.mark.parametrize("job_class", [Keyed, Effect])
def test_a_key_that_was_used_for_something_else_is_refused(connections: Connections, job_class: type[BaseJob]) -> None:
    key = f"conflict {job_class.job_type}"
    first = Keyed.dispatch(source="crm", idempotency_key=key)
    payload = {"source": "erp"} if job_class is Keyed else {"note": "crm"}

    with pytest.raises(IdempotencyConflict, match=f"used before, by job {first.id}") as refused:
        job_class.dispatch(**payload, idempotency_key=key)

    assert refused.value.job_id == first.id
    assert isinstance(refused.value, DispatchRefused)
    assert count(connections, key) == 1


class KeyedPrice(BaseJob):
    def _perform(self, price: Decimal, at: datetime) -> None: ...


def test_equal_payloads_are_the_same_however_they_are_spelled(connections: Connections) -> None:
    first = KeyedPrice.dispatch(price="1.50", at="2026-10-25T02:30:00+02:00", idempotency_key="spelled")

    again = KeyedPrice.dispatch(price=1.5, at=datetime(2026, 10, 25, 0, 30, tzinfo=UTC), idempotency_key="spelled")

    assert (again.id, again.is_duplicate) == (first.id, True)
    with pytest.raises(IdempotencyConflict):
        KeyedPrice.dispatch(price="1.5", at="2026-10-25T02:30:00+01:00", idempotency_key="spelled")


def test_a_key_that_an_earlier_version_took_is_known(connections: Connections) -> None:
    payload = {"price": "1.50", "at": "2026-10-25T02:30:00+02:00"}
    first = KeyedPrice.dispatch(**payload, idempotency_key="former")
    former = fingerprint(["KeyedPrice", payload])  # as it was made before
    execute(connections, "UPDATE idempotency_keys SET payload_hash = :former WHERE key = 'former'", former=former)

    assert KeyedPrice.dispatch(**payload, idempotency_key="former").id == first.id
    with pytest.raises(IdempotencyConflict):
        KeyedPrice.dispatch(**{**payload, "price": "2.50"}, idempotency_key="former")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\x00b", "\ud800", 5, b"key"])
def test_a_key_that_is_no_key_is_refused(connections: Connections, key: Any) -> None:
    with pytest.raises(OptionError, match="idempotency_key="):
        Keyed.dispatch(source="crm", idempotency_key=key)


def test_several_jobs_take_no_key(connections: Connections) -> None:
    for payloads in ([{"source": "crm"}], [{"source": "crm"}, {"source": "erp"}]):
        with pytest.raises(OptionError, match="dispatch_many takes no idempotency_key"):
            Keyed.dispatch_many(payloads, idempotency_key="many")
    assert count(connections, "many") == 0


def test_a_refused_dispatch_leaves_the_key_free(connections: Connections) -> None:
    with pytest.raises(ParentNotFound):
        Keyed.dispatch(source="crm", idempotency_key="free", after=UUID(int=5))

    assert not Keyed.dispatch(source="crm", idempotency_key="free").is_duplicate


# -- in transactions


def test_a_key_is_rolled_back_with_its_job(connections: Connections) -> None:
    with Session(connections.engine) as session:
        Keyed.dispatch(source="crm", idempotency_key="rolled back", session=session)
        session.rollback()

    assert not Keyed.dispatch(source="crm", idempotency_key="rolled back").is_duplicate


def test_a_refusal_leaves_the_transaction_as_it_was(connections: Connections) -> None:
    Keyed.dispatch(source="crm", idempotency_key="usable")
    with Session(connections.engine) as session:
        session.execute(sa.text("SET LOCAL lock_timeout = '7s'"))
        before = Echo.dispatch(session=session)
        with pytest.raises(IdempotencyConflict):
            Keyed.dispatch(source="erp", idempotency_key="usable", session=session)
        again = Keyed.dispatch(source="crm", idempotency_key="usable", session=session)
        new = Keyed.dispatch(source="crm", idempotency_key="usable too", session=session)
        assert session.execute(sa.text("SHOW lock_timeout")).scalar_one() == "7s"
        session.commit()

    assert again.is_duplicate
    assert [before.refresh().status, new.refresh().status] == [JobStatus.QUEUED] * 2
    assert {str(before.id), str(new.id)} <= set(pushed(connections))
    assert pushed(connections).count(str(again.id)) == 1


def test_a_rival_is_waited_for(connections: Connections) -> None:
    with Session(connections.engine) as session, ThreadPoolExecutor(1) as pool:
        first = Keyed.dispatch(source="crm", idempotency_key="awaited", session=session)
        again = pool.submit(lambda: Keyed.dispatch(source="crm", idempotency_key="awaited"))
        eventually(lambda: one_value(connections, "SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the wait")
        session.commit()

        assert (again.result(10).id, again.result().is_duplicate) == (first.id, True)


def test_a_rival_that_rolls_back_leaves_the_key_to_whoever_waits(connections: Connections) -> None:
    with Session(connections.engine) as session, ThreadPoolExecutor(1) as pool:
        first = Keyed.dispatch(source="crm", idempotency_key="left", session=session)
        next_one = pool.submit(lambda: Keyed.dispatch(source="crm", idempotency_key="left"))
        eventually(lambda: one_value(connections, "SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the wait")
        session.rollback()

        assert next_one.result(10).id != first.id
        assert not next_one.result().is_duplicate


def test_a_rival_that_does_not_end_is_not_waited_for_for_ever(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.connections.locks.CONFLICT_SECONDS", 1)
    with Session(connections.engine) as rival, Session(connections.engine) as session:
        Keyed.dispatch(source="crm", idempotency_key="stuck", session=rival)
        kept = Echo.dispatch(session=session)
        began = time.monotonic()
        with pytest.raises(DispatchContended, match="has not ended within 1 s: nothing was written"):
            Keyed.dispatch(source="crm", idempotency_key="stuck", session=session)
        assert 0.9 < time.monotonic() - began < 5
        session.commit()
        with pytest.raises(DispatchContended):
            Keyed.dispatch(source="crm", idempotency_key="stuck")

    assert kept.refresh().status is JobStatus.QUEUED


async def dispatch_twice(connections: Connections) -> list[Any]:
    url = connections.settings.require_database_url().replace("psycopg2", "asyncpg")
    engine = create_async_engine(url)
    try:
        async with AsyncSession(engine) as session:
            handles = [await Keyed.adispatch(source="crm", idempotency_key="async", session=session) for _ in range(2)]
            with pytest.raises(IdempotencyConflict):
                await Keyed.adispatch(source="erp", idempotency_key="async", session=session)
            await session.commit()
    finally:
        await engine.dispose()
    return handles


def test_an_async_session_has_the_same(connections: Connections) -> None:
    first, again = asyncio.run(dispatch_twice(connections))

    assert (first.id, first.is_duplicate, again.is_duplicate) == (again.id, False, True)
    assert first.refresh().status is JobStatus.QUEUED


# -- how long


def test_keys_are_forgotten_after_their_time_but_not_before_their_job_has_ended(connections: Connections) -> None:
    old, waiting, young = (Keyed.dispatch(source="crm", idempotency_key=key) for key in ("old", "waiting", "young"))
    run_job(str(old.id))
    run_job(str(young.id))
    sql = "UPDATE idempotency_keys SET created_at = now() - make_interval(hours => :hours) WHERE key = :key"
    for key, hours in (("old", 25), ("waiting", 25), ("young", 23)):
        execute(connections, sql, hours=hours, key=key)

    prune(connections)

    again = [Keyed.dispatch(source="crm", idempotency_key=key) for key in ("old", "waiting", "young")]
    assert [one.is_duplicate for one in again] == [False, True, True]
    assert again[1].id == waiting.id


# -- the hot path


def test_a_plain_dispatch_is_one_statement(connections: Connections) -> None:
    Keyed.dispatch(source="crm")  # the first of a process also asks for the name of the ledger
    executed: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        executed.append(statement)

    sa.event.listen(connections.engine, "before_cursor_execute", note)
    Keyed.dispatch(source="crm")

    assert len(executed) == 1
    assert "ON CONFLICT" not in executed[0]


# -- with real processes

DISPATCHING = """
import sys, time
from sample_jobs import Effect
time.sleep(max(0, float(sys.argv[2]) - time.time()))
handle = Effect.dispatch(note="once", idempotency_key=sys.argv[1])
print("job", handle.id, handle.is_duplicate, flush=True)
"""


def at_once(system: Stack, processes: int, key: str) -> list[Process]:
    moment = str(time.time() + 0.15 * processes)
    return [system.start(sys.executable, "-c", DISPATCHING, key, moment) for _ in range(processes)]


def said(processes: list[Process]) -> list[tuple[str, bool]]:
    lines = [line.split() for one in processes for line in one.output().splitlines() if line.startswith("job ")]
    return [(line[1], line[2] == "True") for line in lines]


def test_many_processes_at_once_dispatch_one_job(connections: Connections, system: Stack) -> None:
    processes = at_once(system, 30, "at once")
    assert [one.wait(60) for one in processes] == [0] * 30

    answers = said(processes)
    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(duplicate for _, duplicate in answers) == [False] + [True] * 29
    assert count(connections, "at once") == 1


def test_processes_that_are_killed_in_the_middle_leave_one_job_or_a_free_key(
    connections: Connections, system: Stack
) -> None:
    processes = at_once(system, 20, "killed")
    eventually(lambda: said(processes), 60, "the first dispatch")
    for one in processes[::2]:
        if one.popen.poll() is None:
            os.kill(one.pid, signal.SIGKILL)
    for one in processes:
        one.wait(60)

    assert {job_id for job_id, _ in said(processes)} == {str(Effect.dispatch(note="once", idempotency_key="killed").id)}
    assert count(connections, "killed") == 1


# -- over HTTP

EMPTY = {"job": "EmptyTable", "payload": {"schema": "public", "table_name": "flights"}}
KEY = "Idempotency-Key"


@pytest.fixture
def api(system: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=system.api(JOBLEDGER_JOB_MODULES="api_jobs"), timeout=20) as client:
        yield client


def test_over_http(connections: Connections, api: httpx.Client) -> None:
    first = api.post("/create-jobs/", json=EMPTY, headers={KEY: "http"})
    again = api.post("/create-jobs/EmptyTable", json={"payload": EMPTY["payload"]}, headers={KEY: "http"})
    assert (first.status_code, first.headers.get("Idempotency-Replayed")) == (201, None)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert (first.json()["is_duplicate"], again.json()) == (False, first.json() | {"is_duplicate": True})
    assert again.headers["Location"] == first.headers["Location"]

    other = EMPTY | {"payload": {"schema": "public", "table_name": "planes"}}
    conflict = api.post("/create-jobs/", json=other, headers={KEY: "http"})
    assert (conflict.status_code, first.json()["job_id"] in conflict.json()["detail"]) == (422, True)
    assert api.post("/create-jobs/", json=EMPTY, headers={KEY: "http", "X-Else": "x"}).json() == again.json()
    assert api.post("/create-jobs/", json=[EMPTY], headers={KEY: "list"}).status_code == 422
    for wrong in (b"", b"x" * 256, b"a\tb", "ö".encode()):
        assert api.post("/create-jobs/", json=EMPTY, headers={KEY: wrong}).status_code == 400, wrong
    assert count(connections, "http") == 1


def test_over_http_at_once(connections: Connections, api: httpx.Client) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: api.post("/create-jobs/", json=EMPTY, headers={KEY: "many"}), range(20)))

    assert {one.status_code for one in answers} == {201}
    assert len({one.json()["job_id"] for one in answers}) == 1
    assert sum("Idempotency-Replayed" in one.headers for one in answers) == 19
