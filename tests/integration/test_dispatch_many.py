"""Dispatching many jobs at once: in parts, each in its own time, all or none."""

import json
import os
import signal
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from harness import one_value
from jobledger import AlreadyDispatched, BaseJob, Connections, JobHandle, JobStatus, LedgerUnavailable, Limit, Unique
from jobledger.dispatch import accept, after_commit, parts
from jobledger.domain.records import Wake

pytestmark = pytest.mark.one_database


@pytest.fixture(autouse=True)
def _empty(connections: Connections) -> Iterator[None]:
    yield
    with connections.transaction() as connection:
        connection.execute(sa.text("DROP TRIGGER IF EXISTS slow ON job_statuses"))
        connection.execute(sa.text("TRUNCATE job_statuses, unique_windows, job_limits CASCADE"))


class Row(BaseJob):
    queue = "unattended"

    def _perform(self, n: int, text: str = "") -> None: ...


class OneRow(Row):
    unique = Unique("n")


class LastRow(Row):
    unique = Unique("n", on_conflict="replace")


class RefusingRow(Row):
    unique = Unique("n", on_conflict="error")


class HourlyRow(Row):
    unique = Unique("n", within="1h")


class LimitedRow(Row):
    limit = Limit(2, key="row:{n}")


def count(connections: Connections) -> int:
    return int(one_value(connections, "SELECT count(*) FROM job_statuses"))


def numbers(connections: Connections, handles: list[JobHandle]) -> list[int]:
    """What stands in the rows of these jobs."""
    with connections.transaction() as connection:
        rows = connection.execute(sa.text("SELECT id, CAST(payload->>'n' AS int) AS n FROM job_statuses")).all()
    by_id = {row.id: row.n for row in rows}
    return [by_id[one.id] for one in handles]


def slow_from(connections: Connections, first: int, seconds: float) -> None:
    """Have Postgres take so long for the row of this number."""
    with connections.transaction() as connection:
        connection.execute(
            sa.text(f"""
            CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep({seconds}); RETURN new; END $$;
            CREATE TRIGGER slow BEFORE INSERT ON job_statuses FOR EACH ROW
              WHEN (CAST(new.payload->>'n' AS int) = {first}) EXECUTE FUNCTION slow()
            """)
        )


def test_twenty_thousand_are_accepted(connections: Connections) -> None:
    statements: list[int] = []
    sa.event.listen(
        connections.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, parameters, *_: (
            statements.append(len(str(parameters))) if "INSERT" in statement else None
        ),
    )

    handles = Row.dispatch_many({"n": number, "text": "x" * 200} for number in range(20_000))

    assert numbers(connections, handles) == list(range(20_000))
    assert {one.status for one in handles} == {JobStatus.QUEUED}
    assert len(statements) == 20
    assert max(statements) < 2 * 2**20


def test_a_dispatch_may_take_longer_than_a_single_one_as_long_as_it_gets_on(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_ROWS", 10)
    monkeypatch.setattr(parts, "DISPATCH_SECONDS", 3.0)
    for number in (5, 15, 25):
        slow_from(connections, number, 1.1)
        with connections.transaction() as connection:
            connection.execute(sa.text(f"ALTER TRIGGER slow ON job_statuses RENAME TO slow_{number}"))

    began = time.monotonic()
    handles = Row.dispatch_many({"n": number} for number in range(30))

    assert time.monotonic() - began > 3.3 > parts.DISPATCH_SECONDS
    assert numbers(connections, handles) == list(range(30))
    for number in (5, 15, 25):
        with connections.transaction() as connection:
            connection.execute(sa.text(f"DROP TRIGGER slow_{number} ON job_statuses"))


def test_a_postgres_that_is_too_slow_is_not_said_to_be_away_and_nothing_is_written(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_ROWS", 10)
    monkeypatch.setattr(parts, "DISPATCH_SECONDS", 3.0)
    slow_from(connections, 25, 60)

    began = time.monotonic()
    with pytest.raises(LedgerUnavailable) as refusal:
        Row.dispatch_many({"n": number} for number in range(100))

    assert time.monotonic() - began < 30
    assert str(refusal.value) == (
        "Postgres is too slow: it took 20 of 100 jobs, and not the next ones within 3 s. "
        "Nothing was written; dispatch fewer at once, or later."
    )
    assert count(connections) == 0
    assert Row.dispatch(n=1).status is JobStatus.QUEUED


def test_a_postgres_that_freezes_is_noticed_after_the_time_of_one_part(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_ROWS", 10)
    backend = one_value(connections, "SELECT pg_backend_pid()")

    os.kill(backend, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable, match=r"it took 0 of 500 jobs, and not the next ones within 1\.5 s"):
            Row.dispatch_many([{"n": 1}] * 500)
        assert time.monotonic() - began < 40  # and not after that of all 50 parts, which is 77 s
    finally:
        os.kill(backend, signal.SIGCONT)
    assert count(connections) == 0


def test_a_commit_that_does_not_answer_is_said_to_be_one(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "COMMIT_SECONDS", 0.5)
    with connections.transaction() as connection:
        connection.execute(
            sa.text("""
            CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep(60); RETURN new; END $$;
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON job_statuses DEFERRABLE INITIALLY DEFERRED
              FOR EACH ROW EXECUTE FUNCTION slow()
            """)
        )

    with pytest.raises(LedgerUnavailable, match=r"did not commit 2 jobs within 0\.5 s: whether it will is not known"):
        Row.dispatch_many([{"n": 1}, {"n": 2}])


def test_a_postgres_that_is_away_is_said_to_be(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(connection: Any, *_: Any) -> Any:
        connection.connection.dbapi_connection.close()
        return admit(connection, *_)

    admit = accept.admit
    monkeypatch.setattr(accept, "admit", cut)
    with pytest.raises(LedgerUnavailable, match="Postgres is away"):
        Row.dispatch_many([{"n": 1}, {"n": 2}])


@pytest.mark.parametrize("job_class", [OneRow, LastRow, HourlyRow])
def test_equal_ones_are_one_however_far_apart(connections: Connections, job_class: type[BaseJob]) -> None:
    before = job_class.dispatch(n=1500)

    handles = job_class.dispatch_many({"n": number % 1800, "text": str(number)} for number in range(3600))

    assert numbers(connections, handles) == [number % 1800 for number in range(3600)]
    assert [one.id for one in handles[:1800]] == [one.id for one in handles[1800:]]
    assert [one.is_duplicate for one in handles] == [number == 1500 or number >= 1800 for number in range(3600)]
    assert handles[1500].id == before.id
    assert count(connections) == 1800
    last = one_value(connections, "SELECT payload->>'text' FROM job_statuses WHERE id = :id", id=handles[7].id)
    assert last == ("1807" if job_class is LastRow else "7")


def test_an_error_in_a_later_part_leaves_nothing_behind(connections: Connections) -> None:
    there = RefusingRow.dispatch(n=2500)
    before = count(connections)

    with pytest.raises(AlreadyDispatched) as refusal:
        RefusingRow.dispatch_many({"n": number} for number in range(3000))
    assert refusal.value.job_id == there.id
    assert count(connections) == before

    with Session(connections.engine) as session:
        with pytest.raises(AlreadyDispatched):
            RefusingRow.dispatch_many(({"n": number} for number in range(3000)), session=session)
        Row.dispatch(n=1, session=session)  # the transaction goes on
        session.commit()
    assert count(connections) == before + 1


def test_many_in_a_transaction_wait_for_its_commit(connections: Connections) -> None:
    with Session(connections.engine) as session:
        handles = Row.dispatch_many(({"n": number} for number in range(2500)), session=session)
        session.rollback()
    assert count(connections) == 0

    with Session(connections.engine) as session:
        handles = Row.dispatch_many(({"n": number} for number in range(2500)), session=session)
        session.commit()
    assert numbers(connections, handles) == list(range(2500))


def test_many_wait_for_a_parent_and_have_limits(connections: Connections) -> None:
    parent = Row.dispatch(n=0)

    children = Row.dispatch_many(({"n": number} for number in range(1500)), after=parent)
    limited = LimitedRow.dispatch_many({"n": number // 500} for number in range(1500))

    assert {one.status for one in children} == {JobStatus.DEFERRED}
    assert one_value(connections, "SELECT count(*) FROM job_dependencies WHERE parent_id = :id", id=parent.id) == 1500
    assert one_value(connections, "SELECT count(*) FROM job_limits") == 1500
    ready = "SELECT count(*) FROM job_statuses WHERE id = ANY(:ids) AND held_by IS NULL"
    assert one_value(connections, ready, ids=[one.id for one in limited]) == 6


def test_payloads_with_several_spellings_are_told_apart_in_one_dispatch(connections: Connections) -> None:
    class SpelledPrice(BaseJob):
        unique = Unique()

        def _perform(self, price: Decimal) -> None: ...

    handles = SpelledPrice.dispatch_many([{"price": price} for price in ("1.5", "1.50", "2", "15e-1", "2.0")])

    assert len({one.id for one in handles}) == 2
    assert [one.is_duplicate for one in handles] == [False, True, False, True, True]
    assert one_value(connections, "SELECT payload FROM job_statuses WHERE id = :id", id=handles[0].id) == {
        "price": "1.5"
    }


def test_no_statement_holds_all_of_a_large_dispatch_at_once(connections: Connections) -> None:
    text = "x" * 200_000
    tracemalloc.start()
    try:
        Row.dispatch_many({"n": number, "text": text} for number in range(200))  # 40 MB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2.2 * 200 * len(text)  # the payloads themselves, once, and what a part needs
    assert count(connections) == 200


def test_wake_ups_of_many_are_pushed_in_batches(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(own: Connections, wakes: Sequence[Wake]) -> bool:
        sizes.append(len(wakes))
        return push(own, wakes)

    push = accept.push
    monkeypatch.setattr(accept, "push", counted)
    monkeypatch.setattr(after_commit, "push", counted)

    handles = Row.dispatch_many({"n": number} for number in range(2500))
    with Session(connections.engine) as session:
        handles += Row.dispatch_many(({"n": number} for number in range(1500)), session=session)
        session.commit()

    assert sizes == [1000, 1000, 500, 1000, 500]
    pushed = connections.redis.lrange("rq:queue:unattended", 0, -1)
    assert [one.decode() for one in pushed] == [str(one.id) for one in handles]


def test_many_are_accepted_while_redis_takes_nothing_and_each_row_says_so(connections: Connections) -> None:
    connections.redis.config_set("maxmemory", 1)
    try:
        Row.dispatch_many({"n": number} for number in range(3000))
    finally:
        connections.redis.config_set("maxmemory", 0)

    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE pushed_at IS NULL") == 3000


def test_rows_are_written_as_they_were_given(connections: Connections) -> None:
    payloads = [{"n": number, "text": json.dumps({"a": "\"\\'\u00fc%(x)s:rows"})} for number in range(1200)]

    handles = Row.dispatch_many(payloads)

    stored = one_value(connections, "SELECT payload FROM job_statuses WHERE id = :id", id=handles[1100].id)
    assert stored == payloads[1100]
