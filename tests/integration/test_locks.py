"""Bounded waits for locks, and what an error of the database says, whichever driver raised it."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from harness import eventually, execute, one_value
from jobledger import Connections, LedgerUnavailable, Settings
from jobledger.connections.locks import (
    LockTimeout,
    limit_silence,
    savepoint_waiting_for_locks,
    transaction_waiting_for_locks,
    waiting_for_locks,
)
from jobledger.connections.postgres import (
    LOCK_NOT_AVAILABLE,
    has_state,
    is_connection_loss,
    sql_state,
)
from jobledger.embedded import EmbeddedServers

WRONG = "SELECT 1 / 0"
DIVISION_BY_ZERO = "22012"
END_ME = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.fixture(scope="module")
def database_url(servers: EmbeddedServers) -> Iterator[str]:
    """One database for all tests of this module."""
    servers.postgres.create_database("locks", template="template_jobledger")
    yield servers.postgres.url_for("locks")
    servers.postgres.drop_database("locks")


@pytest.fixture(autouse=True)
def _rows(connections: Connections) -> None:
    execute(connections, "DROP TABLE IF EXISTS things")
    execute(connections, "CREATE TABLE things AS SELECT generate_series(1, 2) AS id")


@pytest.fixture
def holder(connections: Connections) -> Iterator[Connection]:
    """A transaction that holds the first row."""
    with connections.engine.connect() as connection, connection.begin():
        take(connection, 1)
        yield connection


def take(connection: Connection, *numbers: int) -> None:
    for number in numbers:
        connection.execute(sa.text("SELECT FROM things WHERE id = :id FOR UPDATE"), {"id": number})


def lock_timeout(connection: Connection) -> str:
    return str(connection.execute(sa.text("SHOW lock_timeout")).scalar_one())


# -- waits


@pytest.mark.usefixtures("holder")
def test_a_row_that_another_transaction_holds_is_waited_for_in_vain(connections: Connections) -> None:
    with pytest.raises(LockTimeout, match="lock timeout"), transaction_waiting_for_locks(connections, 5, 0.02) as one:
        take(one, 2, 1)

    with connections.transaction() as another:
        take(another, 2)


def test_a_row_that_is_let_go_in_time_is_waited_for(connections: Connections, holder: Connection) -> None:
    with ThreadPoolExecutor(1) as pool, transaction_waiting_for_locks(connections, 20, 10) as one:
        waits = pool.submit(take, one, 1)
        eventually(lambda: one_value(connections, "SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the wait")
        holder.rollback()
        waits.result(10)


def test_a_deadlock_is_a_vain_wait_too(connections: Connections, holder: Connection) -> None:
    holder.execute(sa.text("SET LOCAL deadlock_timeout = '1min'"))  # so that the other one notices

    def take_in_another_order(pool: ThreadPoolExecutor) -> None:
        with transaction_waiting_for_locks(connections, 20, 10) as one:
            take(one, 2)
            pool.submit(take, holder, 2)
            eventually(lambda: one_value(connections, "SELECT count(*) FROM pg_locks WHERE NOT granted"))
            take(one, 1)

    with ThreadPoolExecutor(1) as pool, pytest.raises(LockTimeout, match="deadlock"):
        take_in_another_order(pool)


def test_the_limit_before_holds_after_the_wait(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '7s'"))
        with waiting_for_locks(connection, 0.02):
            assert lock_timeout(connection) == "20ms"
        assert lock_timeout(connection) == "7s"


def add_and_take(connection: Connection) -> None:
    with savepoint_waiting_for_locks(connection, 0.02):
        connection.execute(sa.text("INSERT INTO things VALUES (4)"))
        take(connection, 1)


@pytest.mark.usefixtures("holder")
def test_a_vain_wait_in_a_savepoint_undoes_that_and_no_more(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '7s'"))
        connection.execute(sa.text("INSERT INTO things VALUES (3)"))
        with pytest.raises(LockTimeout):
            add_and_take(connection)
        assert lock_timeout(connection) == "7s"

    assert one_value(connections, "SELECT max(id) FROM things") == 3


@pytest.mark.usefixtures("holder")
def test_no_time_at_all_is_not_for_ever(connections: Connections) -> None:
    with pytest.raises(LockTimeout), transaction_waiting_for_locks(connections, 5, 0.0) as one:
        take(one, 1)


def test_another_error_stays_what_it_is(connections: Connections) -> None:
    with pytest.raises(sa.exc.DataError), transaction_waiting_for_locks(connections, 5, 1) as connection:
        connection.exec_driver_sql(WRONG)


def test_a_silent_transaction_is_ended_and_that_is_an_unavailable_ledger(connections: Connections) -> None:
    def be_silent() -> None:
        with connections.transaction() as connection:
            limit_silence(connection, 0.02)
            pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()
            eventually(lambda: not one_value(connections, f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"))
            take(connection, 1)

    with pytest.raises(LedgerUnavailable, match="Postgres is away"):
        be_silent()


# -- what an error says


def psycopg2_error(settings: Settings, statement: str) -> psycopg2.Error:
    raw = psycopg2.connect(settings.require_database_url().replace("+psycopg2", ""))
    try:
        with pytest.raises(psycopg2.Error) as caught, raw.cursor() as cursor:
            cursor.execute(statement)
    finally:
        raw.close()
    return caught.value


def asyncpg_error(settings: Settings, statement: str) -> asyncpg.PostgresError:
    async def fail() -> asyncpg.PostgresError:
        raw = await asyncpg.connect(settings.require_database_url().replace("+psycopg2", ""))
        try:
            with pytest.raises(asyncpg.PostgresError) as caught:
                await raw.execute(statement)
        finally:
            raw.terminate()
        return caught.value

    return asyncio.run(fail())


def sqlalchemy_error(settings: Settings, statement: str) -> sa.exc.DBAPIError:
    engine = sa.create_engine(settings.require_database_url(), poolclass=sa.NullPool)
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        connection.exec_driver_sql(statement)
    return caught.value


def async_sqlalchemy_error(settings: Settings, statement: str) -> sa.exc.DBAPIError:
    async def fail() -> sa.exc.DBAPIError:
        url = settings.require_database_url().replace("psycopg2", "asyncpg")
        engine = create_async_engine(url, poolclass=sa.NullPool)
        async with engine.connect() as connection:
            with pytest.raises(sa.exc.DBAPIError) as caught:
                await connection.exec_driver_sql(statement)
            await connection.invalidate()
        return caught.value

    return asyncio.run(fail())


Maker = Callable[[Settings, str], Exception]
DRIVERS: list[Maker] = [psycopg2_error, asyncpg_error, sqlalchemy_error, async_sqlalchemy_error]


@pytest.mark.parametrize("error_of", DRIVERS)
def test_the_state_of_an_error_is_known_whichever_driver_raised_it(settings: Settings, error_of: Maker) -> None:
    error = error_of(settings, WRONG)

    assert sql_state(error) == DIVISION_BY_ZERO
    assert has_state(error, ("22",))
    assert not has_state(error, (LOCK_NOT_AVAILABLE,))
    assert not is_connection_loss(error)


@pytest.mark.parametrize("error_of", DRIVERS)
def test_a_session_that_was_ended_is_a_lost_connection(settings: Settings, error_of: Maker) -> None:
    error = error_of(settings, END_ME)

    assert is_connection_loss(error)  # with the server's word, or without: what the driver read of it first


def test_an_error_without_a_state_says_that_nobody_was_reached() -> None:
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect("host=127.0.0.1 port=1 connect_timeout=2")

    assert sql_state(caught.value) is None
    assert is_connection_loss(caught.value)
    assert not is_connection_loss(OSError("another server's"))
