"""Brings the database's schema to this version of the code, with Alembic."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from jobledger.errors import ConfigurationError

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = (_PACKAGE / "migrations", _PACKAGE.parent.parent / "migrations")
"""In an installed package the migrations lie inside it, in a checkout beside `src`."""


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


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrade the schema. Two at once are harmless: the second waits for the first and finds nothing to do."""
    config = alembic_config()
    config.attributes["engine"] = engine
    command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Downgrade the schema; "base" drops everything, the jobs with it."""
    config = alembic_config()
    config.attributes["engine"] = engine
    command.downgrade(config, revision)


def revisions() -> tuple[str, ...]:
    """The revisions that this version of the code knows, the one that it needs first."""
    return tuple(one.revision for one in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def current_revision(connection: Connection) -> str | None:
    """The revision of the database's schema; None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()
