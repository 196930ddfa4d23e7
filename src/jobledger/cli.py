"""The command line: thin shells over the functions of the package."""

import logging.config
import sys

import click

from jobledger import __version__
from jobledger.connections import Connections, configure
from jobledger.errors import JobledgerError
from jobledger.ledger.migrate import upgrade
from jobledger.observe.log import logging_config
from jobledger.registry import load_job_modules
from jobledger.scheduler.process import SchedulerProcess
from jobledger.schedules import scheduler as book


class _Commands(click.Group):
    """Says errors of ours in one line, and exits with 2."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except JobledgerError as error:
            click.echo(f"jobledger: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="jobledger")
def main() -> None:
    """Background jobs on Redis Queue, with a ledger in Postgres that is always right."""


@main.command()
def migrate() -> None:
    """Bring the database's schema to this version."""
    upgrade(_connections("jobledger-migrate").engine)
    click.echo("The schema is up to date.")


@main.command()
def scheduler() -> None:
    """Run the clock: schedules, retries, repair. Any number may run."""
    connections = _connections("jobledger-scheduler")
    load_job_modules(connections.settings.job_modules)
    SchedulerProcess(connections, book).run_until_signal()


def _connections(application_name: str) -> Connections:
    connections = configure()
    connections.application_name = application_name
    connections.settings.require_database_url()
    logging.config.dictConfig(logging_config(connections.settings.log_level))
    return connections
