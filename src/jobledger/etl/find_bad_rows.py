"""Finds the rows that made a statement fail, by bisection in savepoints, in every version of Postgres.

Postgres reports the first bad value, but neither its row nor its column. So ranges of lines are tried again: first into
a table that has only the columns' types, then into the real table. Each bad row costs at most about as much as a load,
and only the first few are searched.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from jobledger.connections.postgres import ABOUT_DATA, has_state
from jobledger.etl.bad_file import MOST_NAMED, BadFile, BadRow, BadRows
from jobledger.etl.staging import Staging
from jobledger.etl.tables import primary_message

TYPED: Final = "jobledger_typed"

Lines = tuple[int, int]
Failure = sa.exc.DBAPIError


def is_about_data(error: Failure) -> bool:
    """Whether rows caused an error."""
    return has_state(error, ABOUT_DATA)


def check_keys_given(staging: Staging, path: str) -> None:
    """Refuse rows with a null in the key: null conflicts with no value, so each load would add them again.

    Raises:
        BadRows: there are such rows.
    """
    if not staging.key:
        return
    line = staging.staged.c.line
    missing = sa.or_(*(staging.fields[name].is_(None) for name in staging.key))
    query = sa.select(line).where(missing).order_by(line).limit(MOST_NAMED)
    lines = staging.connection.execute(query).scalars().all()
    if lines:
        columns = ", ".join(staging.key)
        raise BadRows(
            path, [BadRow(one, columns, _text(staging, one, staging.key), "the key is null in part") for one in lines]
        )


def bad_rows(staging: Staging, path: str, last_line: int, error: Failure) -> BadFile:
    """The error for a failed `staging.move()`.

    Args:
        path: name of the file in the message.
        last_line: last line of the file.
        error: error of the statement, whose savepoint was rolled back.
    """
    lines = (1, last_line)
    _create_typed(staging)
    found = (
        _of_wrong_type(staging, lines)
        or _against_constraints(staging, lines)
        or _twice_in_file(staging, staging.key or _constrained(staging, error))
    )
    if found:
        return BadRows(path, found)
    return BadFile(f"{path}: nothing was loaded: {_message(error)}")


def _create_typed(staging: Staging) -> None:
    columns = sa.select(*staging.target.c).compile(dialect=staging.connection.dialect)
    staging.connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {TYPED} ON COMMIT DROP AS {columns} WITH NO DATA")


def _of_wrong_type(staging: Staging, lines: Lines) -> list[BadRow]:
    def insert(names: Sequence[str], lines: Lines) -> sa.Executable:
        typed = sa.table(TYPED, *(sa.column(name) for name in names))
        return sa.insert(typed).from_select(list(names), staging.select(names, lines))

    found: list[BadRow] = []
    for line in _failing_lines(lines, lambda some: _failure(staging, insert(staging.names, some))):
        for name in staging.names:
            error = _failure(staging, insert([name], (line, line)))
            if error is not None:
                found.append(BadRow(line, name, _text(staging, line, [name]), _message(error)))
    return found


def _against_constraints(staging: Staging, lines: Lines) -> list[BadRow]:
    found: list[BadRow] = []
    for line in _failing_lines(lines, lambda some: _failure(staging, staging.move(some))):
        error = _failure(staging, staging.move((line, line)))
        if error is not None:
            names = _constrained(staging, error)
            found.append(BadRow(line, ", ".join(names), _text(staging, line, names), _message(error)))
    return found


def _twice_in_file(staging: Staging, names: Sequence[str]) -> list[BadRow]:
    """Rows with the same key as an earlier row; each alone could be loaded."""
    if not names:
        return []
    key = [staging.values[name] for name in names]
    line = staging.staged.c.line
    first = sa.func.first_value(line).over(partition_by=key, order_by=line).label("first")
    ranked = sa.select(line, first).where(*(value.is_not(None) for value in key)).subquery()
    again = sa.select(ranked).where(ranked.c.line > ranked.c.first).order_by(ranked.c.line).limit(MOST_NAMED)
    return [
        BadRow(row.line, ", ".join(names), _text(staging, row.line, names), f"is already on line {row.first}")
        for row in staging.connection.execute(again).all()
    ]


def _failing_lines(lines: Lines, failure: Callable[[Lines], Failure | None]) -> list[int]:
    """The first lines that fail alone, in order."""
    found: list[int] = []
    ranges = [lines]
    while ranges and len(found) < MOST_NAMED:
        first, last = ranges.pop()
        if failure((first, last)) is None:
            continue
        if first == last:
            found.append(first)
        else:
            middle = (first + last) // 2
            ranges += [(middle + 1, last), (first, middle)]
    return found


def _failure(staging: Staging, statement: sa.Executable) -> Failure | None:
    """Try a statement in a savepoint, roll it back, and return its error."""
    savepoint = staging.connection.begin_nested()
    try:
        staging.connection.execute(statement)
    except Failure as error:
        if not is_about_data(error):
            raise
        return error
    finally:
        savepoint.rollback()
    return None


_CONSTRAINED: Final = sa.text("""
SELECT a.attname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.conname = :constraint
  LEFT JOIN (pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid) ON i.indrelid = c.oid AND ic.relname = :constraint
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (coalesce(k.conkey, i.indkey::int2[]))
 WHERE n.nspname = :schema AND c.relname = :table
 ORDER BY a.attnum
""")


def _constrained(staging: Staging, error: Failure) -> list[str]:
    """The columns of the file that a violated constraint covers; none if it covers other columns too."""
    diagnosis: Any = getattr(error.orig, "diag", None)
    if diagnosis is None or diagnosis.table_name is None:
        return []
    if diagnosis.column_name is not None:
        names = [diagnosis.column_name]
    else:
        names = list(
            staging.connection.execute(
                _CONSTRAINED,
                {
                    "schema": diagnosis.schema_name,
                    "table": diagnosis.table_name,
                    "constraint": diagnosis.constraint_name,
                },
            ).scalars()
        )
    return names if set(names) <= set(staging.names) else []


def _text(staging: Staging, line: int, names: Sequence[str]) -> str:
    """The file's values in these columns of a line."""
    if not names:
        return ""
    query = sa.select(*(staging.texts[name] for name in names)).where(staging.staged.c.line == line)
    return ", ".join(staging.connection.execute(query).one())


def _message(error: Failure) -> str:
    """The message of Postgres, with the key that it names but without the whole row."""
    detail = getattr(getattr(error.orig, "diag", None), "message_detail", None) or ""
    return f"{primary_message(error)} {detail if detail.startswith('Key ') else ''}".strip()
