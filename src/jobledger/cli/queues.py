"""`queues`: list, pause and resume queues and job types."""

from contextlib import suppress
from dataclasses import asdict
from typing import Final

import click

from jobledger import control
from jobledger.cli.configuration import connect, who
from jobledger.cli.exits import ExitCode
from jobledger.cli.output import escaped, print_json, say, show_table
from jobledger.cli.parameters import json_option
from jobledger.connections.default import Connections
from jobledger.domain.status import PauseKind
from jobledger.errors import ConfigurationError
from jobledger.ledger import queries, stats
from jobledger.ledger.pauses import Pause
from jobledger.ledger.stats import Load
from jobledger.registry import load_job_modules, registry

READ_SECONDS: Final = 15.0

_name = click.argument("name")
_type = click.option("--type", "is_type", is_flag=True, help="NAME is a job type: of all queues.")


@click.group()
def queues() -> None:
    """List, pause and resume queues, and job types."""


@queues.command("list")
@json_option
def list_queues(as_json: bool) -> None:
    """List queues, with their queued, held and running jobs and their pauses; and paused job types."""
    connections = connect("jobledger-cli")
    pauses = {(one.kind, one.name): one for one in control.paused(connections)}
    names = {PauseKind.QUEUE: list(connections.settings.queues), PauseKind.TYPE: list[str]()}
    for kind, name in pauses:
        names[kind].append(name)
    with connections.transaction(READ_SECONDS) as connection:
        loads = [
            *stats.loads_of_queues(connection, names[PauseKind.QUEUE]),
            *stats.loads_of_types(connection, names[PauseKind.TYPE]),
        ]
    rows = [(one, pauses.get((one.kind, one.name))) for one in loads]
    if as_json:
        print_json({"queues": [{**asdict(load), "paused": _as_json(pause)} for load, pause in rows]})
        return
    show_table(
        ("KIND", "NAME", "STATE", "QUEUED", "HELD", "SCHEDULED", "RUNNING", "OLDEST QUEUED"),
        [_cells(load, pause) for load, pause in rows],
    )


@queues.command("pause")
@_name
@_type
@click.option("--reason", default="", help="Why; shown with the pause.")
@json_option
def pause_queue(name: str, is_type: bool, reason: str, as_json: bool) -> None:
    """Pause a queue or a job type: no more of its jobs start. Running jobs go on."""
    connections, kind = connect("jobledger-cli"), _kind(is_type)
    pause = control.pause(connections, kind, name, who(), reason)
    warning = None if _is_known(connections, kind, pause.name) else _UNKNOWN[kind].format(escaped(pause.name))
    if as_json:
        print_json({"kind": pause.kind, "name": pause.name, "paused": _as_json(pause)})
    else:
        say(f"The {pause.kind} {pause.name} is {_in_words(pause)}.")
    if warning is not None:
        click.echo(f"jobledger: {warning}", err=True)


@queues.command("resume")
@_name
@_type
@json_option
@click.pass_context
def resume_queue(context: click.Context, name: str, is_type: bool, as_json: bool) -> None:
    """End a pause: held jobs run, by priority and age."""
    kind = _kind(is_type)
    released = control.resume(connect("jobledger-cli"), kind, name, who())
    if as_json:
        print_json({"kind": kind, "name": name, "was_paused": released is not None, "released": released or 0})
    elif released is not None:
        say(f"The {kind} {name} goes on; jobs that were held: {released}.")
    if released is None:
        click.echo(f"jobledger: the {kind} {escaped(name)} is not paused", err=True)
        context.exit(ExitCode.FAILED)


_UNKNOWN: Final = {
    PauseKind.QUEUE: "is {0} spelt right? No job was ever in that queue, and JOBLEDGER_QUEUES does not name it here;"
    " `queues resume {0}` ends the pause",
    PauseKind.TYPE: "is {0} spelt right? No job of that type is in the ledger, and JOBLEDGER_JOB_MODULES define none"
    " here; `queues resume {0} --type` ends the pause",
}


def _is_known(connections: Connections, kind: PauseKind, name: str) -> bool:
    """Whether the ledger or this environment knows the queue or type."""
    with connections.transaction(READ_SECONDS) as connection:
        if queries.is_in_use(connection, kind, name):
            return True
    settings = connections.settings
    if kind is PauseKind.QUEUE:
        return name in settings.queues
    with suppress(ConfigurationError):  # `check` reports modules that cannot be loaded
        load_job_modules(settings.job_modules)
    return any(one.job_type == name for one in registry)


def _kind(is_type: bool) -> PauseKind:
    return PauseKind.TYPE if is_type else PauseKind.QUEUE


def _in_words(pause: Pause) -> str:
    return f"paused by {pause.paused_by}" + (f": {pause.reason}" if pause.reason else "")


def _cells(load: Load, pause: Pause | None) -> tuple[object, ...]:
    state = _in_words(pause) if pause is not None else "active"
    return load.kind, load.name, state, load.queued, load.held, load.scheduled, load.running, load.oldest_queued_at


def _as_json(pause: Pause | None) -> dict[str, object] | None:
    return {"at": pause.paused_at, "by": pause.paused_by, "reason": pause.reason} if pause is not None else None
