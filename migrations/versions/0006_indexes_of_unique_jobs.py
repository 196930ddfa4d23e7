"""Indexes of unique and of expiring jobs, built while jobs run.

Nothing here locks out writers, and every step may be done again: a build that was interrupted leaves an invalid index,
which the next try drops first. Building waits for the transactions that were open when it began, such as those of
long jobs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEXES = {
    "uq_job_statuses_unique_key": (
        "UNIQUE",
        "job_statuses (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL",
    ),
    "ix_job_statuses_expiring": (
        "",
        "job_statuses (expires_at) WHERE expires_at IS NOT NULL AND attempt = 0 AND finished_at IS NULL",
    ),
}


def upgrade() -> None:
    with op.get_context().autocommit_block(), _no_lock_timeout():
        for name, (kind, definition) in INDEXES.items():
            _drop_invalid(name)
            op.execute(f"CREATE {kind} INDEX CONCURRENTLY IF NOT EXISTS {name} ON {definition}")


def downgrade() -> None:
    with op.get_context().autocommit_block(), _no_lock_timeout():
        for name in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


@contextmanager
def _no_lock_timeout() -> Iterator[None]:
    """Waiting for long transactions is no reason to give up here, and nobody waits for whoever waits so."""
    limit = op.get_bind().execute(sa.text("SHOW lock_timeout")).scalar_one()
    op.execute("SET lock_timeout = 0")
    yield
    op.execute(f"SET lock_timeout = '{limit}'")


def _drop_invalid(name: str) -> None:
    invalid = sa.text(
        "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE c.relname = :name AND NOT i.indisvalid AND pg_table_is_visible(c.oid)"
    )
    if op.get_bind().execute(invalid, {"name": name}).scalar():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
