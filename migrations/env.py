"""Runs the migrations: one process at a time, and never waiting long for a lock that running jobs need.

A statement that waits for a lock holds up all who come after it. So each gives up after half a second, before anybody
notices and before Postgres looks for deadlocks; `jobledger.ledger.migrate` tries again.
"""

import contextlib
import time

import sqlalchemy as sa
from alembic import context

from jobledger.connections.locks import limit_waits, milliseconds
from jobledger.connections.postgres import make_engine
from jobledger.ledger.models.columns import metadata
from jobledger.observe.log import get_logger
from jobledger.settings import load_settings

LOCK_SECONDS = 0.5
LOOK_SECONDS = 0.2
SAY_SECONDS = 5.0
ONE_AT_A_TIME = 7_420_251_143_907_001  # any number that nobody else uses for an advisory lock

log = get_logger(__name__)


def _wait_for_turn(connection: sa.Connection) -> None:
    """Ask again and again: a statement that waits for the lock would hold a snapshot, and whoever has the lock and
    builds an index concurrently waits for the end of every older snapshot.
    """
    try_lock = sa.text("SELECT pg_try_advisory_lock(:key)")
    say_at = time.monotonic() + SAY_SECONDS
    while not connection.execute(try_lock, {"key": ONE_AT_A_TIME}).scalar_one():
        connection.rollback()
        if time.monotonic() > say_at:
            log.warning("Another migration runs; waiting for its end")
            say_at = float("inf")
        time.sleep(LOOK_SECONDS)


def _set_limits(connection: sa.Connection) -> None:
    limit_waits(connection, milliseconds(LOCK_SECONDS), whole_session=True)
    # If this process is killed while it builds an index, the server stops building. Not every platform can look.
    with contextlib.suppress(sa.exc.DataError), connection.begin_nested():
        connection.execute(sa.text("SET client_connection_check_interval = '2s'"))
    connection.commit()


def run() -> None:
    engine = context.config.attributes.get("engine")
    if engine is None:
        engine = make_engine(load_settings().require_database_url(), "jobledger-migrate")
    with engine.connect() as connection:
        _wait_for_turn(connection)
        _set_limits(connection)
        try:
            context.configure(
                connection=connection,
                target_metadata=metadata,
                transaction_per_migration=True,
                on_version_apply=context.config.attributes.get("on_version_apply"),
            )
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": ONE_AT_A_TIME})
            connection.execute(sa.text("RESET lock_timeout"))
            connection.execute(sa.text("RESET client_connection_check_interval"))
            connection.commit()


run()
