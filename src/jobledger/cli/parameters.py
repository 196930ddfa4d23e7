"""Types of arguments, and common options."""

from datetime import datetime
from typing import Final

import click
from click.types import FuncParamType

from jobledger.domain.options import queue_name, seconds
from jobledger.errors import OptionError

_JSON: Final = "jobledger.json"


def duration(text: str) -> float:
    """A length of time such as "90", "30s" or "1h30m", in seconds.

    Raises:
        click.BadParameter: it is no length of time.
    """
    try:
        return seconds(f"{text}s" if text.isdecimal() else text)
    except OptionError:
        raise click.BadParameter(f'{text!r} is no length of time; say seconds, or "30s", "5m", "1h30m".') from None


def queue(text: str) -> str:
    """The name of a queue, checked.

    Raises:
        click.BadParameter: the name is invalid.
    """
    try:
        return queue_name(text)
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


def moment(text: str) -> datetime:
    """A moment in ISO 8601, with its offset.

    Raises:
        click.BadParameter: it is no moment, or has no offset.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise click.BadParameter(f"{text!r} is no moment; say it with its offset, as 2026-01-31T12:00:00+00:00.")
    return found


DURATION: Final = FuncParamType(duration)
MOMENT: Final = FuncParamType(moment)
QUEUE: Final = FuncParamType(queue)


def _remember(context: click.Context, _: click.Parameter, value: bool) -> bool:
    context.meta[_JSON] = value
    return value


json_option: Final = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,  # known before the error of another argument is printed
    callback=_remember,
    help='Print JSON, for programs; an error is an object {"error": …}.',
)
"""Option of every command with output for people; its parameter is `as_json`."""


def wants_json(context: click.Context) -> bool:
    """Whether the running command was given `--json`."""
    return bool(context.meta.get(_JSON))
