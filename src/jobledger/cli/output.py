"""The output of commands: tables and bars on a terminal, plain text in pipes and files, JSON for programs.

Names, titles, errors and logs in the ledger are untrusted text. They are shown, never interpreted: control characters,
escape codes, line breaks and bidirectional marks are escaped, and nothing is markup.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_STYLES: Final = {"completed": "green", "failed": "red", "canceled": "yellow", "started": "cyan"}


def escaped(text: str) -> str:
    """The text on one line, with unprintable characters escaped as in Python: `\\x1b`, `\\n`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(text: str) -> None:
    """One line on standard output."""
    click.echo(escaped(text))


def say_block(title: str, text: str) -> None:
    """A text of several lines, each indented under its title, so that none can imitate other output."""
    say(f"{title}:")
    for line in text.split("\n"):
        say(f"    {line}")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output.

    Args:
        columns: headings. On a narrow terminal all columns except the first are folded; in a pipe none is.
        rows: one value for each column: None, text, number, datetime, or other JSON.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        _plain_table(columns, cells)
        return
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), no_wrap=number == 0, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(markup=False, highlight=False, emoji=False).print(table)


def _plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    lines = [columns, *cells]
    widths = [max(cell_len(line[number]) for line in lines) for number in range(len(columns))]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case str():
            return escaped(str(value))
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:g}"
        case dict() | list():
            return escaped(json.dumps(value, ensure_ascii=False))
        case _:
            return escaped(str(value))


def print_json(value: Any) -> None:
    """Print a value as one JSON document, in ASCII; moments are ISO 8601, ids and the like are texts."""
    click.echo(json.dumps(value, indent=2, default=_as_json))


def _as_json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


@contextmanager
def progress(what: str, total: int, *, show: bool = True) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error, if that is a terminal.

    Args:
        what: name of the action.
        total: number of steps.
        show: False to show no bar, for a short action.

    Yields:
        A function to call after each step.
    """
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (show and sys.stderr.isatty()),
    ) as bars:
        task = bars.add_task(escaped(what), total=total)
        yield lambda: bars.advance(task)


def confirm(question: str, yes: bool) -> None:
    """Ask before an action that cannot be undone.

    Args:
        question: a question with the answer yes or no.
        yes: whether `--yes` was given, which answers it.

    Raises:
        click.Abort: the answer is no.
        click.UsageError: standard input is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{escaped(question)} There is no terminal to answer it: say --yes.")
    click.confirm(escaped(question), abort=True, err=True)
