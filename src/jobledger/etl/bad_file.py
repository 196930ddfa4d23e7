"""What is wrong with a file that could not be loaded, said so that somebody can repair the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobledger.errors import JobledgerError

MOST_NAMED: Final = 10
"""No more bad rows are named than this; who sees ten knows what is wrong."""

_LONGEST_VALUE: Final = 80


class BadFile(JobledgerError):
    """The file cannot be loaded as it is; nothing of it was."""


class BadRows(BadFile):
    """Rows of the file cannot be loaded; nothing of it was."""

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
        line: of the file, the first is 1; a row with line breaks in it has the number of its first line.
        column: of the header; several, separated by commas, if the problem is with all of them; empty for the row.
        value: as the file has it.
        problem: what is wrong with it.
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
