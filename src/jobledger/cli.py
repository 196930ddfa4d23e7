"""The command line: thin shells over the functions of the package."""

import logging.config
import sys
from pathlib import Path

import click

from jobledger import __version__
from jobledger.connections import Connections, configure
from jobledger.errors import JobledgerError
from jobledger.ledger.migrate import upgrade
from jobledger.observe.log import logging_config
from jobledger.registry import load_job_modules
from jobledger.scheduler.process import SchedulerProcess
from jobledger.schedules import scheduler as book
from jobledger.settings import load_settings
from jobledger.up import Plan
from jobledger.up import up as run_up
from jobledger.web.app import create_app
from jobledger.web.server import serve


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


@main.command(context_settings={"allow_interspersed_args": False})
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="How many `rq worker` processes.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".jobledger"),
    show_default=True,
    help="For the data of embedded servers, and urls.env.",
)
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append what the processes log to this file instead of showing it.",
)
@click.option("--exit", "exits", is_flag=True, help="Stop when COMMAND has ended, with its exit code.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def up(workers: int, directory: Path, log_file: Path | None, exits: bool, command: tuple[str, ...]) -> None:
    """Run everything here: servers (embedded ones where no URL is set), schema, API, scheduler, workers, rq-dashboard.

    When all of it is ready, run COMMAND, if there is one, with the URLs in its environment.
    """
    if exits and not command:
        raise click.UsageError("--exit needs a COMMAND")
    sys.exit(run_up(load_settings(), Plan(workers, directory, log_file, command, exits)))


@main.command()
@click.option("--host", help="Address to listen on; JOBLEDGER_API_HOST if not said.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; JOBLEDGER_API_PORT if not said, 0 for any free one.")
def api(host: str | None, port: int | None) -> None:
    """Serve the HTTP API: create jobs, follow them, /health and /docs."""
    connections = _connections("jobledger-api")
    settings = connections.settings
    settings.require_redis_url()
    load_job_modules(settings.job_modules)
    serve(create_app(connections), host or settings.api_host, settings.api_port if port is None else port)


def _connections(application_name: str) -> Connections:
    connections = configure()
    connections.application_name = application_name
    connections.settings.require_database_url()
    logging.config.dictConfig(logging_config(connections.settings.log_level))
    return connections
