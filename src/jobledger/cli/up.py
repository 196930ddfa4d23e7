"""`up`."""

from pathlib import Path

import click

from jobledger.settings import load_settings
from jobledger.up import Plan
from jobledger.up import up as run_up


@click.command(context_settings={"allow_interspersed_args": False})
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
@click.pass_context
def up(
    context: click.Context, workers: int, directory: Path, log_file: Path | None, exits: bool, command: tuple[str, ...]
) -> None:
    """Run everything here, with one command.

    That is: servers (embedded ones where no URL is set), schema, API, scheduler, workers, rq-dashboard. When all of it
    is ready, run COMMAND, if there is one, with the URLs in its environment.
    """
    if exits and not command:
        raise click.UsageError("--exit needs a COMMAND")
    context.exit(run_up(load_settings(), Plan(workers, directory, log_file, command, exits)))
