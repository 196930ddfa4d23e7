"""The command line: one module per command, imported when its command is called.

exits            exit codes, and messages of errors
output           tables, JSON, progress bars; text from the ledger is shown, never interpreted
parameters       types of arguments, and common options
configuration    set-up of commands: settings, connections, logs
"""

import importlib
import io
import sys
from typing import Final

import click
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from jobledger import __version__
from jobledger.cli.exits import EXIT_CODES, ExitCode, say_error
from jobledger.errors import JobledgerError

_COMMANDS: Final = {
    "up": "Run everything here, with one command.",
    "migrate": "Bring the database's schema to this version.",
    "scheduler": "Run the clock: schedules, retries, repair. Any number may run.",
    "worker": "Run jobs: RQ's worker with our settings. Any number may run.",
    "api": "Serve the HTTP API: create jobs, follow them, /health and /docs.",
    "schedules": "List, run, pause, resume and backfill schedules.",
    "jobs": "List, show, retry and cancel jobs.",
    "queues": "List, pause and resume queues, and job types.",
    "check": "Check the configuration, without any server.",
    "doctor": "Check the settings, the servers, the processes and the jobs, and report problems.",
    "health": "Check whether a process of this machine works, for health checks of containers.",
}
"""The commands; each is in the module of its name. The help is here, so that showing it loads no module."""


class _Commands(click.Group):
    """Imports a command when it is called, and prints errors in one line."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"jobledger.cli.{name}"), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except click.UsageError as error:
            say_error(context, ExitCode.WRONG, error, error.format_message(), aloud=False)
            raise
        except (JobledgerError, RedisError, SQLAlchemyError, UnicodeError) as error:
            context.exit(say_error(context, *ExitCode.of(error)))


@click.group(cls=_Commands, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="jobledger")
def main() -> None:
    """Background jobs on Redis Queue, with a ledger in Postgres that is always right."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in no locale may a job's text stop a command
