"""The rows of a file in a temporary table of texts, and the one statement that moves them into their table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg2
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.engine import Connection

from jobledger.etl.bad_file import BadFile
from jobledger.etl.csv_rows import CsvRows
from jobledger.etl.tables import Column, TableName

STAGED: Final = "jobledger_staged"


class _TypeName(sa.types.UserDefinedType[Any]):
    """A type by its name in Postgres, so that values can be cast to types of extensions and users."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name.replace("%", "%%")


def _or_null(text: sa.ColumnElement[str], nulls: Sequence[str]) -> sa.ColumnElement[Any]:
    for null in nulls:
        text = sa.func.nullif(text, null)
    return text


class Staging:
    """The staged rows of one file.

    Args:
        connection: connection in the transaction of the load.
        table: target table.
        columns: columns of the table that the file has, in the file's order.
        key: columns that identify existing rows; none for plain inserts.
        nulls: values that mean null.
    """

    def __init__(
        self,
        connection: Connection,
        table: TableName,
        columns: Sequence[Column],
        key: Sequence[str],
        nulls: Sequence[str],
    ) -> None:
        self.connection = connection
        self.key = tuple(key)
        self.names = tuple(column.name for column in columns)
        self.target = sa.table(table.name, *(sa.column(name) for name in self.names), schema=table.schema)
        # Numbered, because the file may use any names, also "line".
        texts = [sa.Column(f"c{number}", sa.Text, nullable=False) for number in range(len(columns))]
        self.staged = sa.Table(
            STAGED,
            sa.MetaData(),
            sa.Column("line", sa.BigInteger, nullable=False),
            *texts,
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DROP",
        )
        self.texts: dict[str, sa.Column[str]] = dict(zip(self.names, texts, strict=True))
        self.fields = {name: _or_null(text, nulls) for name, text in self.texts.items()}
        self.values: dict[str, sa.ColumnElement[Any]] = {
            column.name: sa.cast(self.fields[column.name], _TypeName(column.type)) for column in columns
        }

    def fill(self, rows: CsvRows) -> None:
        """Copy all rows into the temporary table.

        Raises:
            BadFile: the file has invalid rows, or cannot be read further.
        """
        self.staged.create(self.connection)
        names = ", ".join(column.name for column in self.staged.columns)
        statement = f"COPY {STAGED} ({names}) FROM STDIN"
        with _errors_as_sqlalchemys(self.connection, statement):
            cursor = self.connection.connection.cursor()
            try:
                cursor.copy_expert(statement, rows)
            except psycopg2.Error:
                if rows.error is not None:  # COPY ends with the reader's error, but raises another
                    raise rows.error from None
                raise
            finally:
                cursor.close()

    def known(self) -> int:
        """Number of rows whose key exists in the table; concurrent transactions may be adding some."""
        if not self.key:
            return 0
        same = sa.and_(*(self.target.c[name] == self.values[name] for name in self.key))
        joined = self.staged.join(self.target, same)
        return self.connection.execute(sa.select(sa.func.count()).select_from(joined)).scalar_one()

    def move(self, lines: tuple[int, int] | None = None) -> sa.Executable:
        """The statement that casts the rows, and inserts or updates them.

        Args:
            lines: only the rows that begin on these lines of the file, both included.
        """
        statement = pg.insert(self.target).from_select(list(self.names), self.select(self.names, lines))
        if not self.key:
            return statement
        changes = {name: statement.excluded[name] for name in self.names if name not in self.key}
        if not changes:
            return statement.on_conflict_do_nothing(index_elements=self.key)
        return statement.on_conflict_do_update(index_elements=self.key, set_=changes)

    def select(self, names: Sequence[str], lines: tuple[int, int] | None = None) -> sa.Select[Any]:
        """The cast values of some columns."""
        query = sa.select(*(self.values[name].label(name) for name in names)).select_from(self.staged)
        return query if lines is None else query.where(self.staged.c.line.between(*lines))


@contextmanager
def _errors_as_sqlalchemys(connection: Connection, statement: str) -> Iterator[None]:
    """Raise errors of a psycopg2 cursor as SQLAlchemy's, so that a lost connection is recognized."""
    try:
        yield
    except psycopg2.Error as error:
        lost = bool(connection.connection.dbapi_connection.closed)  # type: ignore[union-attr]
        if lost:
            connection.invalidate()
        raise sa.exc.DBAPIError.instance(
            statement, None, error, psycopg2.Error, connection_invalidated=lost, dialect=connection.dialect
        ) from error


def fit(header: Sequence[str], columns: Sequence[Column], key: Sequence[str]) -> list[Column]:
    """The table's columns for the header of a file, in its order.

    Raises:
        BadFile: the header does not fit the table; the message names every column that does not.
    """
    by_name = {column.name: column for column in columns}
    given = set(header)
    problems = {
        "named twice": sorted(name for name in given if header.count(name) > 1),
        "unknown to the table": [name for name in header if name not in by_name],
        "written by the database itself": [name for name in header if name in by_name and by_name[name].is_generated],
        "required by the table, but not in the file": [
            column.name for column in columns if column.must_be_given and column.name not in given
        ],
        "part of the key, but not in the file": [name for name in key if name not in given],
    }
    found = [f"{', '.join(map(repr, names))} ({problem})" for problem, names in problems.items() if names]
    if found:
        raise BadFile(f"The columns of the file do not fit the table: {'; '.join(found)}.")
    return [by_name[name] for name in header]
