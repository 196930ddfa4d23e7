"""Dispatching: what is written to the ledger, what is pushed to Redis, and what happens if one of them is away."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from rq.job import Job
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from harness import one_value, row_of
from jobledger import (
    BaseJob,
    Connections,
    JobHandle,
    JobRefused,
    JobStatus,
    LedgerUnavailable,
    OptionError,
    PayloadError,
    Retry,
    Settings,
    configure,
)
from jobledger.maintenance.relay import relay_unpushed
from sample_jobs import Echo

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


class Import(BaseJob):
    queue = "etl"
    timeout = "1m30s"
    retry = Retry(5)
    title = "Import {table} of {source}"

    def _perform(self, table: str, source: str = "api") -> None: ...

    @classmethod
    def check_payload(cls, table: str, source: str) -> None:
        if table == "secrets":
            raise JobRefused("secrets are not for import")


def count(connections: Connections) -> int:
    return int(one_value(connections, "SELECT count(*) FROM job_statuses"))


def pushed(connections: Connections, queue: str) -> list[str]:
    """What is in the list of an RQ queue, first to be taken first."""
    return [one.decode() for one in connections.redis.lrange(f"rq:queue:{queue}", 0, -1)]


# -- the row


def test_a_dispatched_job_is_queued_as_its_class_says(connections: Connections) -> None:
    handle = Import.dispatch(table="flights")

    row = row_of(connections, handle)
    assert handle.status is JobStatus.QUEUED
    assert (row.status, row.queue, row.job_type) == ("queued", "etl", "Import")
    assert row.payload == {"table": "flights", "source": "api"}
    assert row.title == "Import flights of api"
    assert (row.timeout_seconds, row.max_attempts) == (90, 5)
    assert (row.attempt, row.errors, row.crashes, row.losses) == (0, 0, 0, 0)
    assert row.created_at == row.queued_at == row.available_at == row.pushed_at
    assert row.push_count == 1
    assert (row.schedule_id, row.fire_at, row.reason, row.finished_at) == (None, None, None, None)


def test_ids_are_uuids_that_sort_by_time(connections: Connections) -> None:
    ids = [Echo.dispatch().id for _ in range(5)]

    assert ids == sorted(ids)
    assert {one.version for one in ids} == {7}


def test_a_class_that_says_nothing_gets_the_defaults(connections: Connections) -> None:
    row = row_of(connections, Echo.dispatch())

    assert (row.queue, row.max_attempts, row.title) == ("default", 1, None)
    assert row.timeout_seconds == connections.settings.default_timeout_seconds


def test_options_of_a_dispatch_win_over_those_of_the_class(connections: Connections) -> None:
    row = row_of(connections, Import.dispatch(table="flights", queue="low", timeout=5, max_attempts=2))

    assert (row.queue, row.timeout_seconds, row.max_attempts) == ("low", 5, 2)
    assert row.payload == {"table": "flights", "source": "api"}


def test_options_may_be_spoken_before(connections: Connections) -> None:
    careful = Import.set(queue="low", title="By hand", owner="ada").set(max_attempts=9)

    row = row_of(connections, careful.dispatch(table="flights", queue="high"))

    assert (row.queue, row.title, row.owner, row.max_attempts) == ("high", "By hand", "ada", 9)


class Urgent(BaseJob):
    priority = 2

    def _perform(self) -> None: ...


class UrgentImport(Urgent):
    queue = "etl"


@pytest.mark.parametrize(
    ("job_class", "spoken", "queue", "priority"),
    [
        (Echo, {}, "default", 5),
        (Echo, {"priority": 8}, "low", 8),
        (Urgent, {}, "high", 2),
        (Urgent, {"priority": 7}, "default", 7),
        (Urgent, {"priority": 0}, "high", 1),
        (Urgent, {"queue": "etl"}, "etl", 2),
        (UrgentImport, {}, "etl", 2),
        (UrgentImport, {"priority": 9}, "etl", 9),
        (UrgentImport, {"priority": 9, "queue": "low"}, "low", 9),
    ],
)
def test_a_priority_is_kept_and_chooses_the_queue_unless_one_is_named(
    connections: Connections, job_class: type[BaseJob], spoken: dict[str, Any], queue: str, priority: int
) -> None:
    handle = job_class.dispatch(**spoken)

    row = row_of(connections, handle)
    assert (row.queue, row.priority) == (queue, priority)
    assert pushed(connections, queue)[-1] == str(handle.id)


def test_what_waits_in_postgres_is_pushed_by_priority(connections: Connections) -> None:
    redis_url = SecretStr("redis://127.0.0.1:1/0")
    away = configure(connections.settings.model_copy(update={"redis_url": redis_url}))
    late, soon, first = (Echo.dispatch(queue="ordered", priority=one) for one in (9, 4, 1))
    away.close()

    relay_unpushed(configure(connections.settings))

    assert pushed(connections, "ordered") == [str(one.id) for one in (first, soon, late)]


def test_a_title_that_does_not_fit_the_payload_stays_as_it_is_written(connections: Connections) -> None:
    for title in ("{nobody}", "{0}", "{n:>5}", "{n.real", "{n[a]}", "{texts[a]}"):
        row = row_of(connections, Echo.set(title=title).dispatch(n=None, texts=["a"]))
        assert row.title == title


def test_a_job_that_takes_any_object_keeps_it(connections: Connections) -> None:
    payload = {"source": "external_api", "nested": {"rows": [1, 2.5, None, True, "é 🛫 \\u0000"]}}

    assert row_of(connections, Echo.dispatch(**payload, queue="etl")).payload == payload


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"table": 5}, PayloadError),
        ({}, PayloadError),
        ({"table": "flights", "speed": 5}, PayloadError),
        ({"table": "a\x00b"}, PayloadError),
        ({"table": "secrets"}, JobRefused),
        ({"table": "flights", "queue": "not a queue"}, OptionError),
        ({"table": "flights", "timeout": "soon"}, OptionError),
        ({"table": "flights", "after": "yesterday"}, OptionError),
        ({"table": "flights", "unique": True}, OptionError),
    ],
)
def test_what_is_refused_is_not_written(
    connections: Connections, given: dict[str, Any], refusal: type[Exception]
) -> None:
    before = count(connections)

    with pytest.raises(refusal):
        Import.dispatch(**given)
    assert count(connections) == before
    assert pushed(connections, "etl") == []


# -- the wake-up


def test_a_wake_up_is_an_rq_job_that_carries_the_id_and_nothing_else(connections: Connections) -> None:
    handle = Import.dispatch(table="flights")

    job = Job.fetch(str(handle.id), connection=connections.redis)
    assert job.func_name == "jobledger.worker.run_job"
    assert (job.args, job.kwargs) == ((str(handle.id),), {})
    assert job.description == "Import: Import flights of api"
    assert (job.origin, job.get_status()) == ("etl", "queued")
    assert job.timeout == 90 + 30
    assert (job.retries_left, job.meta) == (None, {})


def test_rq_sees_the_queue_and_the_jobs_in_it_in_order(connections: Connections) -> None:
    handles = [Import.dispatch(table=name) for name in "abc"]

    assert pushed(connections, "etl") == [str(one.id) for one in handles]
    assert connections.redis.smembers("rq:queues") == {b"rq:queue:etl"}


def test_a_description_without_title_is_the_type(connections: Connections) -> None:
    assert Job.fetch(str(Echo.dispatch().id), connection=connections.redis).description == "Echo"


# -- later


@pytest.mark.parametrize("delay", [300, timedelta(minutes=5), "5m"])
def test_a_delayed_job_is_scheduled_and_not_pushed(connections: Connections, delay: Any) -> None:
    handle = Import.dispatch_in(delay, table="flights")

    row = row_of(connections, handle)
    assert handle.status is JobStatus.SCHEDULED
    assert row.status == "scheduled"
    assert row.available_at - row.created_at == timedelta(minutes=5)
    assert (row.pushed_at, row.queued_at, row.push_count) == (None, None, 0)
    assert pushed(connections, "etl") == []


def test_a_job_may_wait_for_a_moment(connections: Connections) -> None:
    moment = datetime.now(UTC) + timedelta(days=1)

    row = row_of(connections, Import.dispatch_at(moment, table="flights"))

    assert row.status == "scheduled"
    assert abs(row.available_at - moment) < timedelta(milliseconds=1)


def test_a_moment_that_has_passed_is_now(connections: Connections) -> None:
    handle = Import.dispatch_at(datetime(2013, 1, 1, tzinfo=UTC), table="flights")

    assert handle.status is JobStatus.QUEUED
    assert pushed(connections, "etl") == [str(handle.id)]


def test_a_delay_of_nothing_is_now(connections: Connections) -> None:
    assert Import.dispatch_in(0, table="flights").status is JobStatus.QUEUED


def test_a_moment_must_say_its_time_zone(connections: Connections) -> None:
    with pytest.raises(OptionError, match="time zone"):
        Import.dispatch_at(datetime(2113, 1, 1), table="flights")


@pytest.mark.parametrize("moment", [date(2113, 1, 1), None, "2113-01-01T00:00:00Z", 4512412800, timedelta(days=1)])
def test_what_is_no_moment_is_refused(connections: Connections, moment: Any) -> None:
    with pytest.raises(OptionError, match=r"dispatch_at=.* is no moment: say a datetime"):
        Import.dispatch_at(moment, table="flights")


def test_a_moment_in_the_night_of_a_clock_change_is_the_one_that_is_meant(connections: Connections) -> None:
    for fold, utc in ((0, "00:30"), (1, "01:30")):
        moment = datetime(2113, 10, 29, 2, 30, tzinfo=ZoneInfo("Europe/Prague"), fold=fold)
        row = row_of(connections, Import.dispatch_at(moment, table="flights"))
        assert row.available_at == moment.astimezone(UTC)
        assert row.available_at.astimezone(UTC).strftime("%H:%M") == utc


@pytest.mark.parametrize("delay", [None, date(2113, 1, 1), "soon", [5]])
def test_what_is_no_delay_is_refused(connections: Connections, delay: Any) -> None:
    with pytest.raises(OptionError, match=r"dispatch_in=.* is no length of time"):
        Import.dispatch_in(delay, table="flights")


# -- many


def test_many_jobs_are_one_statement_and_one_pipeline(connections: Connections) -> None:
    inserts: list[str] = []
    sa.event.listen(
        connections.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: inserts.append(statement) if "INSERT" in statement else None,
    )
    commands, reads = _redis_work(connections)

    handles = Import.dispatch_many([{"table": f"t{number}"} for number in range(1000)])

    more_commands, more_reads = _redis_work(connections)
    assert len(inserts) == 1
    assert pushed(connections, "etl") == [str(one.id) for one in handles]
    assert more_commands - commands > 1000
    assert more_reads - reads < 300


def _redis_work(connections: Connections) -> tuple[int, int]:
    """Commands that Redis has executed, and how often it had to read from a socket for them."""
    info: Any = connections.redis.info("stats")
    return info["total_commands_processed"], info["total_reads_processed"]


def test_handles_of_many_come_in_the_order_of_their_payloads(connections: Connections) -> None:
    handles = Import.dispatch_many(({"table": name} for name in "cab"), queue="low")

    assert [row_of(connections, one).payload["table"] for one in handles] == ["c", "a", "b"]
    assert {row_of(connections, one).queue for one in handles} == {"low"}
    assert pushed(connections, "low") == [str(one.id) for one in handles]


def test_of_many_all_or_none_are_accepted(connections: Connections) -> None:
    before = count(connections)

    with pytest.raises(PayloadError, match="table"):
        Import.dispatch_many([{"table": "flights"}, {"table": 5}])
    assert count(connections) == before


def test_a_payload_among_many_cannot_carry_options(connections: Connections) -> None:
    with pytest.raises(OptionError, match="'queue' cannot be part of a payload"):
        Echo.dispatch_many([{"queue": "low"}])


@pytest.mark.parametrize("payloads", [None, 5, {"table": "flights"}, "flights", b"flights"])
def test_what_is_no_list_of_payloads_is_refused(connections: Connections, payloads: Any) -> None:
    with pytest.raises(OptionError, match=r"dispatch_many\(.*\): say a list of payloads, each a dictionary"):
        Import.dispatch_many(payloads)


@pytest.mark.parametrize("payload", [None, 5, "flights", ["table"], [("table", "flights")]])
def test_what_is_no_payload_is_refused(connections: Connections, payload: Any) -> None:
    with pytest.raises(PayloadError, match=r"Import: .* is no payload: say a dictionary"):
        Import.dispatch_many([{"table": "flights"}, payload])


def test_none_of_many_is_nothing(connections: Connections) -> None:
    assert Import.dispatch_many([]) == []


# -- async


def test_async_code_dispatches_without_a_session(connections: Connections) -> None:
    handle = asyncio.run(Import.adispatch(table="flights", queue="low"))

    assert row_of(connections, handle).status == "queued"
    assert pushed(connections, "low") == [str(handle.id)]


def test_async_code_dispatches_in_its_own_transaction(connections: Connections) -> None:
    async def dispatch() -> tuple[JobHandle, JobHandle, list[str]]:
        async with _async_session(connections) as session:
            parent = await Import.adispatch(session=session, table="flights")
            child = await Import.set(after=parent).adispatch(session=session, table="airlines")
            before_commit = pushed(connections, "etl")
            await session.commit()
        return parent, child, before_commit

    parent, child, before_commit = asyncio.run(dispatch())

    assert before_commit == []
    assert pushed(connections, "etl") == [str(parent.id)]
    assert (row_of(connections, parent).status, row_of(connections, child).status) == ("queued", "deferred")


def test_an_async_dispatch_wants_an_async_session(connections: Connections) -> None:
    with (
        Session(connections.engine) as session,
        pytest.raises(OptionError, match="session= is a Session: say an Async"),
    ):
        asyncio.run(Import.adispatch(session=session, table="flights"))  # type: ignore[arg-type]


def test_a_job_dispatched_in_an_async_transaction_is_gone_with_it(connections: Connections) -> None:
    async def dispatch() -> JobHandle:
        async with _async_session(connections) as session:
            handle = await Import.adispatch(session=session, table="flights")
            await session.rollback()
            await session.commit()
            return handle

    handle = asyncio.run(dispatch())

    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE id = :id", id=handle.id) == 0
    assert pushed(connections, "etl") == []


@contextlib.asynccontextmanager
async def _async_session(connections: Connections) -> Any:
    engine = create_async_engine(connections.engine.url.set(drivername="postgresql+asyncpg"))
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


# -- when Redis is away


@pytest.fixture
def closed_port() -> int:
    """A port that refuses every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def elsewhere(settings: Settings, **urls: str) -> Connections:
    """The process's default from now on: the same servers, but for those named."""
    return configure(settings.model_copy(update={name: SecretStr(url) for name, url in urls.items()}))


def test_a_job_is_accepted_without_redis_and_pushed_once_it_is_back(
    connections: Connections, settings: Settings, closed_port: int
) -> None:
    elsewhere(settings, redis_url=f"redis://127.0.0.1:{closed_port}")

    handle = Import.dispatch(table="flights")

    row = row_of(connections, handle)
    assert (row.status, row.pushed_at) == ("queued", None)
    relay_unpushed(connections)
    row = row_of(connections, handle)
    assert pushed(connections, "etl") == [str(handle.id)]
    assert (row.pushed_at is not None, row.push_count) == (True, 1)


def test_many_jobs_are_accepted_without_redis(connections: Connections, settings: Settings, closed_port: int) -> None:
    elsewhere(settings, redis_url=f"redis://127.0.0.1:{closed_port}")

    handles = Import.dispatch_many([{"table": name} for name in "abc"])

    assert [row_of(connections, one).pushed_at for one in handles] == [None, None, None]


@pytest.mark.timed
def test_a_frozen_redis_holds_nobody_up(connections: Connections, settings: Settings, silent_port: int) -> None:
    frozen = elsewhere(settings, redis_url=f"redis://127.0.0.1:{silent_port}")
    with frozen.transaction():
        pass  # opens the connection to Postgres, which is not part of the measurement

    started = time.monotonic()
    handle = Import.dispatch(table="flights")

    assert time.monotonic() - started < 1
    assert row_of(connections, handle).pushed_at is None


def test_a_redis_that_takes_no_more_is_away(connections: Connections) -> None:
    connections.redis.config_set("maxmemory", 1)
    try:
        handle = Import.dispatch(table="flights")
    finally:
        connections.redis.config_set("maxmemory", 0)

    assert row_of(connections, handle).pushed_at is None


# -- when Postgres is away


@pytest.mark.timed
def test_a_closed_postgres_refuses_at_once(settings: Settings, redis_url: str, closed_port: int) -> None:
    away = elsewhere(settings, database_url=f"postgresql://me:secret@127.0.0.1:{closed_port}/x")

    started = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="Postgres is away"):
        Import.dispatch(table="flights")

    assert time.monotonic() - started < 1
    assert pushed(away, "etl") == []
    away.close()


@pytest.mark.timed
def test_a_postgres_that_never_answers_is_away(settings: Settings, redis_url: str, silent_port: int) -> None:
    away = elsewhere(settings, database_url=f"postgresql://me:secret@127.0.0.1:{silent_port}/x")

    started = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="Postgres is away"):
        Import.dispatch(table="flights")

    assert time.monotonic() - started < 4
    away.close()


@pytest.mark.timed
def test_a_postgres_that_freezes_is_away(connections: Connections) -> None:
    backend = one_value(connections, "SELECT pg_backend_pid()")

    os.kill(backend, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable, match="Postgres is away"):
            Import.dispatch(table="flights")
        assert 1 < time.monotonic() - started < 3
    finally:
        os.kill(backend, signal.SIGCONT)

    assert pushed(connections, "etl") == []
    assert Import.dispatch(table="flights").status is JobStatus.QUEUED


def test_a_statement_that_is_wrong_is_not_an_outage(connections: Connections) -> None:
    with pytest.raises(sa.exc.ProgrammingError), connections.transaction() as connection:
        connection.execute(sa.text("SELECT nothing FROM nowhere"))
