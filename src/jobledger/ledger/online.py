"""What migrations do to tables that are in use. No step locks anybody out for long, and each may be done again.

Each step commits what came before it in its migration, and is committed itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op


def build_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index while others write; it waits for the transactions that were open when it began.

    A build that was interrupted has left an invalid index, which is dropped first.

    Args:
        name: of the index.
        definition: what follows ON: the table, the columns, a condition.
        unique: whether no two rows may be equal in it.
    """
    with _without_lock_timeout():
        if op.get_bind().execute(_INVALID, {"name": name}).scalar():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY IF NOT EXISTS {name} ON {definition}")


def drop_index(name: str) -> None:
    """Drop an index while others write."""
    with _without_lock_timeout():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def replace_check(table: str, name: str, condition: str) -> None:
    """Put a CHECK in the place of another one of the same name, if there is one.

    In two transactions: the scan of the table has a lock that lets everybody read and write.
    """
    with op.get_context().autocommit_block():
        op.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"
        )
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


_INVALID = sa.text(
    "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE c.relname = :name AND NOT i.indisvalid AND pg_table_is_visible(c.oid)"
)


@contextmanager
def _without_lock_timeout() -> Iterator[None]:
    """Waiting for long transactions is no reason to give up here, and nobody waits for whoever waits so."""
    with op.get_context().autocommit_block():
        limit = op.get_bind().execute(sa.text("SHOW lock_timeout")).scalar_one()
        op.execute("SET lock_timeout = 0")
        yield
        op.execute(f"SET lock_timeout = '{limit}'")
