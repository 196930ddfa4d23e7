"""Brings the database's schema to this version of the code, with Alembic.

Also steps of migrations on tables that are in use: no step locks others out for long, and each can be repeated.
Each step commits the statements before it in its migration, and is committed itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from jobledger.connections.locks import limit_waits
from jobledger.connections.postgres import WAITED_IN_VAIN, sql_state
from jobledger.errors import ConfigurationError, SchemaLocked
from jobledger.ledger.models.columns import metadata

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = (_PACKAGE / "migrations", _PACKAGE.parent.parent / "migrations")
"""In an installed package the migrations lie inside it, in a checkout beside `src`."""

WAIT_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 5.0
"""A try may hold up all jobs for half a second."""

_LONGEST_STATEMENT: Final = 80


def alembic_config() -> Config:
    """Alembic's configuration, with the place of the migrations.

    Raises:
        ConfigurationError: the migrations are not there.
    """
    for place in _PLACES:
        if (place / "env.py").is_file():
            config = Config()
            config.set_main_option("script_location", str(place))
            return config
    raise ConfigurationError(f"No migrations found in {' or '.join(map(str, _PLACES))}: is the package complete?")


def upgrade(
    engine: Engine,
    revision: str = "head",
    on_step: Callable[[str], None] | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> None:
    """Upgrade the schema. Two at once are harmless: the second waits for the first and finds nothing to do.

    Args:
        on_step: called with each revision that was run, by this process.
        wait_seconds: how long to try again when a table is locked by others.

    Raises:
        SchemaLocked: a table was locked for so long. Revisions that were run stay.
    """

    def applied(*, step: Any, **_: object) -> None:
        if on_step is not None:
            on_step(step.up_revision_id)

    config = alembic_config()
    config.attributes["engine"] = engine
    config.attributes["on_version_apply"] = applied
    _again_while_locked(lambda: command.upgrade(config, revision), wait_seconds)


def downgrade(engine: Engine, revision: str, wait_seconds: float = WAIT_SECONDS) -> None:
    """Downgrade the schema; "base" drops everything, the jobs with it.

    Raises:
        SchemaLocked: a table was locked for all of `wait_seconds`.
    """
    config = alembic_config()
    config.attributes["engine"] = engine
    _again_while_locked(lambda: command.downgrade(config, revision), wait_seconds)


def _again_while_locked(migrate: Callable[[], None], wait_seconds: float) -> None:
    """Try again after growing pauses, so that others go on. A revision is one transaction, or repeatable."""
    deadline = time.monotonic() + wait_seconds
    pause = _PAUSE_SECONDS
    while True:
        try:
            return migrate()
        except sa.exc.OperationalError as error:
            if sql_state(error) not in WAITED_IN_VAIN:
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise SchemaLocked(
                    f"Other transactions had a table of the migration locked for {wait_seconds:g} s. Nothing is half "
                    "done: run it again, when transactions are shorter or with more time. It stopped at: "
                    f"{_statement(error)}"
                ) from None
        time.sleep(min(pause, left))
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _statement(error: sa.exc.DBAPIError) -> str:
    return " ".join((error.statement or "").split())[:_LONGEST_STATEMENT]


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """An open transaction that has used the ledger's tables; a migration may have to wait for it.

    Attributes:
        seconds: since it began.
        state: "active", or "idle in transaction" if it does something else than SQL.
    """

    pid: int
    application_name: str
    state: str
    seconds: float


_OPEN: Final = sa.text("""
SELECT pid, application_name, state, CAST(extract(epoch FROM clock_timestamp() - xact_start) AS float8) AS seconds
  FROM pg_stat_activity a
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> :own
   AND state IS NOT NULL AND xact_start < clock_timestamp() - make_interval(secs => :seconds)
   AND (backend_xmin IS NOT NULL  -- a concurrent index build waits for older snapshots
        OR EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                    WHERE l.pid = a.pid AND l.granted AND c.relname = ANY(:tables)))
 ORDER BY xact_start LIMIT :limit
""")


def open_transactions(connection: Connection, own: str, seconds: float, limit: int) -> list[OpenTransaction]:
    """The transactions that a migration may have to wait for, oldest first.

    Args:
        own: application name of the migration's sessions, which are left out.
        seconds: only those that have been open for longer.
        limit: transactions at most.
    """
    rows = connection.execute(_OPEN, {"own": own, "seconds": seconds, "limit": limit, "tables": list(metadata.tables)})
    return [OpenTransaction(**row._mapping) for row in rows]


def revisions() -> tuple[str, ...]:
    """The revisions that this version of the code knows, the one that it needs first."""
    return tuple(one.revision for one in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def current_revision(connection: Connection) -> str | None:
    """The revision of the database's schema; None if it was never migrated."""
    # Alembic's own function logs two lines each time, and health checks ask again and again.
    if connection.execute(sa.text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return str(found) if found is not None else None


def build_index(name: str, definition: str, *, unique: bool = False) -> None:
    """Build an index while others write; it waits for the transactions that were open when it began.

    A build that was interrupted has left an invalid index, which is dropped first.

    Args:
        name: of the index.
        definition: the text after ON: the table, the columns, a condition.
        unique: no two rows may be equal in it.
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
    """Add a CHECK, in the place of one of the same name, if there is one.

    In two transactions: the lock during the scan of the table lets others read and write.
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
    """Wait for long transactions without a limit: no other transaction waits behind these statements."""
    with op.get_context().autocommit_block():
        before = limit_waits(op.get_bind(), "0", whole_session=True)
        yield
        limit_waits(op.get_bind(), before, whole_session=True)
