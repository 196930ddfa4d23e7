"""Errors of a file that could not be loaded, detailed enough to repair the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobledger.errors import JobledgerError

MOST_NAMED: Final = 10
"""Most bad rows that an error names."""

_LONGEST_VALUE: Final = 80


class BadFile(JobledgerError):
    """The file cannot be loaded; no row was loaded."""


class BadRows(BadFile):
    """Rows of the file cannot be loaded; no row was loaded."""

    def __init__(self, path: str, rows: Sequence["BadRow"]) -> None:
        named = rows[:MOST_NAMED]
        more = "; more may follow" if len(named) == MOST_NAMED else ""
        lines = "\n".join(f"  {row}" for row in named)
        super().__init__(f"{path}: nothing was loaded, because of these rows{more}:\n{lines}")
        self.rows = tuple(named)


@dataclass(frozen=True, slots=True)
class BadRow:
    """One value, or one row, that cannot be loaded.

    Attributes:
        line: line of the file, from 1; the first line of a row with line breaks.
        column: name in the header; several, separated by commas, if the problem concerns several; empty for the row.
        value: text in the file.
        problem: description of the problem.
    """

    line: int
    column: str
    value: str
    problem: str

    def __str__(self) -> str:
        if not self.column:
            return f"line {self.line}: {self.problem}"
        value = self.value if len(self.value) <= _LONGEST_VALUE else self.value[: _LONGEST_VALUE - 1] + "…"
        return f"line {self.line}, column {self.column}, value {value!r}: {self.problem}"
