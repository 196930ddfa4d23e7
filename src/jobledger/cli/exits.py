"""The end of a command: exit codes, and messages of errors."""

from enum import IntEnum
from typing import Final, Self

import click
from redis import RedisError
from sqlalchemy.exc import DBAPIError

from jobledger.cli.output import escaped, print_json
from jobledger.cli.parameters import wants_json
from jobledger.connections.postgres import SCHEMA_MISSING, first_line, is_connection_loss, sql_state
from jobledger.errors import ConfigurationError, DispatchRefused, LedgerUnavailable


class ExitCode(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    FAILED = 1
    """The check failed, or the request was not carried out."""
    WRONG = 2
    """The usage or the configuration is wrong."""
    AWAY = 3
    """A server is away."""

    @classmethod
    def of(cls, error: Exception) -> tuple[Self, Exception, str]:
        """The code and the message for an error.

        Returns:
            The arguments of `say_error`.
        """
        if isinstance(error, DBAPIError):
            said = first_line(error)
            if sql_state(error) in SCHEMA_MISSING:
                hint = "the schema is missing or older than this version; run `python -m jobledger migrate`"
                return cls(cls.WRONG), error, f"{hint} ({said})"
            return cls(cls.AWAY if is_connection_loss(error) else cls.FAILED), error, f"Postgres says: {said}"
        if isinstance(error, LedgerUnavailable | RedisError):
            return cls(cls.AWAY), error, str(error)
        if isinstance(error, ConfigurationError | DispatchRefused):
            return cls(cls.WRONG), error, str(error)
        if isinstance(error, UnicodeError):
            return cls(cls.WRONG), error, "an argument is no UTF-8 text"
        return cls(cls.FAILED), error, str(error)


EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  the check failed, or the request was not carried out
  2  the usage or the configuration is wrong
  3  Postgres or Redis is away
"""


def say_error(context: click.Context, code: ExitCode, error: Exception, message: str, *, aloud: bool = True) -> int:
    """Print an error in one line on standard error; with `--json` also as an object on standard output.

    Args:
        aloud: False if the caller prints it on standard error itself.

    Returns:
        The code.
    """
    if aloud:
        click.echo(f"jobledger: {escaped(message)}", err=True)
    if wants_json(context):
        print_json({"error": {"type": type(error).__name__, "message": message, "exit_code": int(code)}})
    return int(code)
