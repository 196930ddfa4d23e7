"""`health`: exit code 0 or 1, and one line, for health checks of containers."""

import http.client
import json
import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import redis

from jobledger.cli.configuration import connect
from jobledger.cli.exits import ExitCode
from jobledger.cli.output import print_json, say
from jobledger.cli.parameters import DURATION, json_option
from jobledger.connections.redis import make_redis
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import heartbeats
from jobledger.process import LEASE_KEEPER
from jobledger.queues import WorkerRecord, workers
from jobledger.settings import load_settings

ANSWER_SECONDS: Final = 5.0
LOOPBACK: Final = "127.0.0.1"
_ANY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with the API's address; nothing listens here

_WORKER: Final = re.compile(r"(?:^|[/\0])(?:jobledger|rq(?:\.cli)?)\0worker(?:-pool)?\0|^rq:worker:")
"""The command line of a worker; the last form if setproctitle is installed."""
_SCHEDULER: Final = re.compile(r"(?:^|[/\0])jobledger\0scheduler\0")
_NONE: Final = "no such {} runs on this machine; if another command started it, give its --pid"

_alive_option: Final = click.option(
    "--alive",
    is_flag=True,
    help="Check only that its process exists; asks no server, so that it may decide about a restart.",
)


@click.group()
def health() -> None:
    """Check whether a process of this machine works, for health checks of containers."""


@health.command()
@click.option("--name", help="RQ's name of the worker; any of this machine if not said.")
@click.option("--pid", type=int, help="Its process id.")
@_alive_option
@click.option(
    "--max-age",
    type=DURATION,
    default="8m",
    show_default=True,
    help="Longest silence; an idle worker gives a sign of life every 7 minutes, unless RQ was told otherwise.",
)
@json_option
@click.pass_context
def worker(
    context: click.Context, name: str | None, pid: int | None, alive: bool, max_age: float, as_json: bool
) -> None:
    """Whether an RQ worker of this machine runs, and Redis answers."""
    if alive:
        _say_alive(context, "worker", _processes(_WORKER, name, pid), as_json)
        return
    try:
        with make_redis(load_settings().require_redis_url(), ANSWER_SECONDS) as client:
            records = [one for one in workers(client) if one.host == socket.gethostname()]
    except redis.RedisError as error:
        _say(context, False, f"Redis is away: {error}", as_json)
        return
    asked = [one for one in records if name in (None, one.name) and pid in (None, one.pid)]
    found = [one for one in asked if _gives_signs(one, max_age)]
    if found:
        _say(context, True, f"worker {found[0].name} (process {found[0].pid}) works", as_json)
    elif asked:
        _say(context, False, f"worker {asked[0].name} (process {asked[0].pid}) gives no sign of life", as_json)
    elif here := _processes(_WORKER, name, pid):
        # A worker writes its host and process only at its start; it goes on working when Redis loses them.
        _say(context, True, f"worker process {here[0]} runs; Redis was emptied since, or does not know it yet", as_json)
    else:
        _say(context, False, _NONE.format("worker"), as_json)


def _gives_signs(record: WorkerRecord, max_age_seconds: float) -> bool:
    """Whether a worker of this machine runs, by its heartbeat and the kernel."""
    if record.pid is None or record.heartbeat_at is None:
        return False
    return (datetime.now(UTC) - record.heartbeat_at).total_seconds() <= max_age_seconds and _is_there(record.pid)


@health.command()
@click.option("--pid", type=int, help="Its process id; any of this machine if not said.")
@_alive_option
@click.option("--max-age", type=DURATION, default="30s", show_default=True, help="Longest silence.")
@json_option
@click.pass_context
def scheduler(context: click.Context, pid: int | None, alive: bool, max_age: float, as_json: bool) -> None:
    """Whether a scheduler of this machine runs and reaches the ledger."""
    if alive:
        _say_alive(context, "scheduler", _processes(_SCHEDULER, pid=pid), as_json)
        return
    try:
        with connect("jobledger-cli").transaction(ANSWER_SECONDS) as connection:
            everyone = heartbeats.list_schedulers(connection)
    except LedgerUnavailable as error:
        _say(context, False, str(error), as_json)
        return
    found = [one for one in everyone if one.host == socket.gethostname() and pid in (None, one.pid)]
    if not found:
        _say(context, False, "the ledger knows no such scheduler of this machine", as_json)
        return
    newest = found[0]
    words = f"scheduler {newest.name} was seen {newest.seen_seconds_ago:.0f} s ago"
    _say(context, newest.seen_seconds_ago <= max_age, words, as_json)


@health.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Of the API; JOBLEDGER_API_PORT if not said.")
@json_option
@click.pass_context
def api(context: click.Context, port: int | None, as_json: bool) -> None:
    """Whether the API of this machine answers that it accepts jobs."""
    settings = load_settings()
    host = settings.api_host if settings.api_host not in _ANY_ADDRESS else LOOPBACK
    url = f"http://{f'[{host}]' if ':' in host else host}:{port or settings.api_port}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy, also if the environment sets one
    try:
        with opener.open(url, timeout=ANSWER_SECONDS) as answer:
            status = json.load(answer)["status"]
    except urllib.error.HTTPError as error:
        _say(context, False, f"{url} answers {error.code}", as_json)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        _say(context, False, f"{url}: {error}", as_json)
    else:
        _say(context, True, f"the API is {status}", as_json)


def _processes(looks: re.Pattern[str], name: str | None = None, pid: int | None = None) -> list[int]:
    """The processes of this machine whose command line matches the pattern and has the name; or the process `pid`, if
    it exists, whatever its command line."""
    if pid is not None and name is None:
        return [pid] if _is_there(pid) else []
    return [
        number
        for number, line in _command_lines()
        if looks.search(line) and pid in (None, number) and (name is None or _has_name(line, name))
    ]


def _command_lines() -> Iterator[tuple[int, str]]:
    """The pids and command lines of the visible processes but lease keepers. A zombie has no command line."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or is hidden
            if (directory / "comm").read_text(errors="replace").strip() != LEASE_KEEPER:
                yield int(directory.name), (directory / "cmdline").read_bytes().decode("utf-8", "replace")


def _has_name(line: str, name: str) -> bool:
    words = line.split("\0")
    return not {name, f"--name={name}", f"-n{name}"}.isdisjoint(words) or line.startswith(f"rq:worker:{name}: ")


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True


def _say_alive(context: click.Context, what: str, here: list[int], as_json: bool) -> None:
    if here:
        _say(context, True, f"{what} runs (process {', '.join(map(str, here))})", as_json)
    else:
        _say(context, False, _NONE.format(what), as_json)


def _say(context: click.Context, healthy: bool, message: str, as_json: bool) -> None:
    if as_json:
        print_json({"healthy": healthy, "message": message})
    else:
        say(message)
    context.exit(ExitCode.DONE if healthy else ExitCode.FAILED)
