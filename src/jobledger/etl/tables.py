"""The tables that the shipped jobs may change: those on a list in the settings, and never the ledger's own.

A name is compared as a (schema, table) pair with the list, looked up in the catalog as a value, and written into SQL
only by SQLAlchemy's quoting. Names are case-sensitive, as Postgres stores them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import Connection

from jobledger.errors import ConfigurationError, JobRefused
from jobledger.ledger import OWN_TABLES

DEFAULT_SCHEMA: Final = "public"

_PART: Final = r'"((?:[^"]|"")+)"|([^".]+)'
_NAME: Final = re.compile(rf"(?:(?:{_PART})\.)?(?:{_PART})")


@dataclass(frozen=True, slots=True)
class TableName:
    """The name of a table, exactly as in the catalog."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `schema.table`, or `table` for a table in `public`; a part that contains a dot is in double quotes.

        Raises:
            ValueError: the text has another form.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError(f'{text!r} is no table: say schema.table, or "sche.ma"."ta.ble" if a name has a dot.')
        quoted_schema, schema, quoted_name, name = match.groups()
        return cls(_plain(quoted_schema) or schema or DEFAULT_SCHEMA, _plain(quoted_name) or name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def quoted(self, connection: Connection) -> str:
        """The name quoted for a statement for `exec_driver_sql`."""
        clause = sa.table(self.name, schema=self.schema)
        return connection.dialect.identifier_preparer.format_table(clause)


def _plain(quoted: str | None) -> str | None:
    return quoted.replace('""', '"') if quoted else None


def check_listed(table: TableName, allowed: Sequence[str], setting: str) -> None:
    """Refuse a table that is not on the list.

    Args:
        allowed: the list in the settings.
        setting: name of the list's environment variable.

    Raises:
        JobRefused: the table is not on the list.
        ConfigurationError: an entry of the list is no table name.
    """
    try:
        listed = [TableName.parse(entry) for entry in allowed]
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {error}") from None
    if table not in listed:
        known = ", ".join(map(str, listed)) or "nothing"
        raise JobRefused(f"{table} is not among the tables that {setting} allows ({known}).")


_LOOK_UP: Final = sa.text("""
SELECT c.relkind,
       EXISTS (SELECT FROM unnest(CAST(:own AS text[])) AS own WHERE to_regclass(own) = c.oid) AS is_own
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = :name
""")
_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a type",
    "t": "a TOAST table",
}


def check_is_table(connection: Connection, table: TableName) -> None:
    """Refuse names of other relations than ordinary or partitioned tables, and the tables of the ledger.

    Raises:
        JobRefused: the table is refused, or does not exist.
    """
    row = connection.execute(
        _LOOK_UP, {"schema": table.schema, "name": table.name, "own": list(OWN_TABLES)}
    ).one_or_none()
    if row is None:
        raise JobRefused(f"Table {table} does not exist.")
    if row.is_own:
        raise JobRefused(f"{table} is one of the ledger's own tables, which no job may change, even if it is listed.")
    if row.relkind not in ("r", "p"):
        raise JobRefused(f"{table} is {_KINDS.get(row.relkind, 'something else')}, not a table.")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        type: its SQL type, without length or precision.
        must_be_given: the column allows no null and has no default.
        is_generated: only the database writes it.
    """

    name: str
    type: str
    must_be_given: bool
    is_generated: bool


# format_type(…, -1), not the declared length: an explicit cast to varchar(3) cuts silently, an assignment refuses.
_COLUMNS: Final = sa.text("""
SELECT a.attname AS name,
       format_type(a.atttypid, -1) AS type,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL AS must_be_given,
       a.attgenerated <> '' OR a.attidentity = 'a' AS is_generated
  FROM pg_attribute a
  JOIN pg_type t ON t.oid = a.atttypid
  JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = :name AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
""")


def columns(connection: Connection, table: TableName) -> list[Column]:
    """The columns of a table, in order."""
    rows = connection.execute(_COLUMNS, {"schema": table.schema, "name": table.name})
    return [Column(**row._mapping) for row in rows]


def check_is_key(connection: Connection, table: TableName, key: Sequence[str]) -> None:
    """Refuse columns that do not identify a row.

    Raises:
        JobRefused: there is no such column, or no unique constraint or index on exactly these.
    """
    upsert = pg.insert(sa.table(table.name, schema=table.schema)).on_conflict_do_nothing(index_elements=list(key))
    question = f"EXPLAIN {upsert.compile(dialect=connection.dialect)}"
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(question)
    except sa.exc.ProgrammingError as error:
        raise JobRefused(f"key={list(key)} of {table}: {primary_message(error)}.") from error


def primary_message(error: sa.exc.DBAPIError) -> str:
    """The error message of Postgres, in one line."""
    diagnosis = getattr(error.orig, "diag", None)
    return getattr(diagnosis, "message_primary", None) or str(error.orig)
