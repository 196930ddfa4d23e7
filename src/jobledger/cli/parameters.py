"""Kinds of arguments, and the options that commands share."""

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
        click.BadParameter: it is none.
    """
    try:
        return seconds(f"{text}s" if text.isdecimal() else text)
    except OptionError:
        raise click.BadParameter(f'{text!r} is no length of time; say seconds, or "30s", "5m", "1h30m".') from None


def queue(text: str) -> str:
    """The name of a queue, checked.

    Raises:
        click.BadParameter: no queue can have that name.
    """
    try:
        return queue_name(text)
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


def moment(text: str) -> datetime:
    """A moment as ISO 8601 writes it, with its offset.

    Raises:
        click.BadParameter: it is none, or has no offset.
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
    is_eager=True,  # so that it is known when another argument turns out to be wrong
    callback=_remember,
    help='Print JSON, for programs; an error is an object {"error": …}.',
)
"""Every command that prints something for people takes it, as `as_json`."""


def wants_json(context: click.Context) -> bool:
    """Whether `--json` was said to the command that runs."""
    return bool(context.meta.get(_JSON))
