"""Runs the migrations: one process at a time, and never waiting long for a lock that running jobs need."""

import sqlalchemy as sa
from alembic import context

from jobledger.connections import make_engine
from jobledger.ledger.models import metadata
from jobledger.settings import load_settings

ONE_AT_A_TIME = 7_420_251_143_907_001  # any number that nobody else uses for an advisory lock


def run() -> None:
    engine = context.config.attributes.get("engine")
    if engine is None:
        engine = make_engine(load_settings().require_database_url(), "jobledger-migrate")
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": ONE_AT_A_TIME})
        connection.execute(sa.text("SET lock_timeout = '10s'"))
        connection.commit()
        try:
            context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": ONE_AT_A_TIME})
            connection.execute(sa.text("RESET lock_timeout"))
            connection.commit()


run()
