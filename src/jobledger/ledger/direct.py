"""The ledger's statements straight on psycopg2, for a work-horse, which lives for one claim and one finish.

SQLAlchemy would touch, and so after a fork copy, several times the memory. The statements of a job's session go through
SQLAlchemy, on the same connection.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, Final, Protocol

import psycopg2
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.connections.postgres import raise_if_lost, raise_if_read_only

_DIALECT: Final = sa.make_url("postgresql+psycopg2://").get_dialect()()


class Rows(Protocol):
    """The part of SQLAlchemy's result that the moves use."""

    def one_or_none(self) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


class Direct:
    """A psycopg2 connection that takes statements as SQLAlchemy's Connection does.

    Args:
        raw: the connection; its owner begins and commits.
        prepared: names of the statements that the server has prepared for this connection.
    """

    def __init__(self, raw: Any, prepared: Mapping[sa.TextClause, str] | None = None) -> None:
        self.raw = raw
        self._prepared = prepared or {}

    def prepare(self) -> None:
        """Have the server prepare the statements; once for each connection.

        Raises:
            psycopg2.Error: a statement does not fit the schema.
        """
        with self.raw.cursor() as cursor:
            for statement, name in self._prepared.items():
                cursor.execute(f"PREPARE {name} AS {_with_numbered_parameters(statement)}")

    def execute(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> "DirectRows":
        """Execute one statement.

        Raises:
            LedgerUnavailable: the connection is gone; or the statement is alone, and Postgres takes no writes.
            psycopg2.Error: the statement failed.
        """
        with self.raw.cursor() as cursor:
            try:
                cursor.execute(_as_driver_sql(statement, self._prepared.get(statement)), parameters)
            except psycopg2.Error as error:
                raise_if_lost(error)
                if self.raw.autocommit:
                    raise_if_read_only(error)
                raise
            return DirectRows([column.name for column in cursor.description], cursor.fetchall())

    def text_of(self, statement: sa.TextClause, parameters: Mapping[str, Any]) -> bytes:
        """The text that `execute` sends to the server."""
        with self.raw.cursor() as cursor:
            text: bytes = cursor.mogrify(_as_driver_sql(statement, self._prepared.get(statement)), parameters)
            return text


class DirectRows:
    """The rows of a statement, with their columns as attributes."""

    def __init__(self, names: list[str], values: list[tuple[Any, ...]]) -> None:
        self._rows = [_row(dict(zip(names, row, strict=True))) for row in values]

    def one_or_none(self) -> Any:
        """The row, if there is one."""
        return self._rows[0] if self._rows else None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)


Executor = Connection | Direct
"""The connections that the moves of a run take."""


@cache
def _as_driver_sql(statement: sa.TextClause, prepared: str | None) -> str:
    compiled = statement.compile(dialect=_DIALECT)
    if prepared is None:
        return str(compiled)
    return f"EXECUTE {prepared} ({', '.join(f'%({name})s' for name in compiled.params)})"


def _with_numbered_parameters(statement: sa.TextClause) -> str:
    compiled = statement.compile(dialect=_DIALECT)
    numbers = {name: f"${number}" for number, name in enumerate(compiled.params, start=1)}
    return str(compiled) % numbers


def _row(mapping: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**mapping, _mapping=mapping)
