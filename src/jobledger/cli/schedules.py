"""`schedules`: list, run, pause, resume and backfill schedules. Commands use the ledger only, without job modules."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import click

from jobledger.cli.configuration import connect, who
from jobledger.cli.exits import ExitCode
from jobledger.cli.output import print_json, progress, say, show_table
from jobledger.cli.parameters import DURATION, json_option
from jobledger.connections.default import Connections
from jobledger.domain.tick import TickOutcome
from jobledger.ledger.ticks import TickRow
from jobledger.schedules import control
from jobledger.schedules.control import Overview
from jobledger.schedules.parse import moment, zone_name

NEXT_TIMES: Final = 5
LOOK_SECONDS: Final = 0.5
NO_SCHEDULER: Final = "No scheduler was seen lately: nothing fires until one runs (`python -m jobledger scheduler`)."

_name = click.argument("name")
_zone = click.option("--tz", help="Time zone of times that name none; the schedule's if not said.")
_wait = click.option("--wait", "wait_seconds", type=DURATION, default="0", help="Wait so long until it has fired.")


@click.group()
def schedules() -> None:
    """List, run, pause, resume and backfill schedules."""


@schedules.command("list")
@json_option
def list_schedules(as_json: bool) -> None:
    """List schedules, with their fire times in words, the next fire time, and their state."""
    connections = connect("jobledger-cli")
    found = control.overviews(connections, NEXT_TIMES)
    if as_json:
        print_json({"schedules": [_as_json(one) for one in found]})
        return
    show_table(
        ("NAME", "STATE", "WHEN", "TIME ZONE", "NEXT, LOCAL", "NEXT, UTC", "LAST, UTC", "DISPATCHES", "ERROR"),
        [
            (one.row.name, _state(one), one.words, one.row.timezone, *_next(one), _last(one), one.target, one.row.error)
            for one in found
        ],
    )
    _say_if_nobody_fires(connections)


@schedules.command("next")
@_name
@click.option("--count", "-n", type=click.IntRange(1, 1000), default=NEXT_TIMES, show_default=True, help="How many.")
@json_option
def next_times(name: str, count: int, as_json: bool) -> None:
    """Show when a schedule fires next, in its time zone and in UTC."""
    found = control.overview(connect("jobledger-cli"), name, count)
    if as_json:
        print_json(_as_json(found))
        return
    say(f"{name}: {found.words} ({found.row.timezone}); {_state(found)}")
    show_table((found.row.timezone, "UTC"), [(_local(one), one.astimezone(UTC)) for one in found.next_times])


@schedules.command()
@_name
@_wait
@json_option
@click.pass_context
def run(context: click.Context, name: str, wait_seconds: float, as_json: bool) -> None:
    """Fire a schedule now, also if it is paused; a running scheduler does it within two seconds.

    If its overlap is skip or queue, it waits until earlier jobs have ended.
    """
    connections = connect("jobledger-cli")
    fire_at = control.run_now(connections, name, who())
    _follow(context, connections, name, (fire_at,), wait_seconds, as_json, {"fire_at": fire_at})


@schedules.command()
@_name
@click.option("--until", help="When it ends by itself, such as 2026-12-24T18:00; until `resume` if not said.")
@click.option("--reason", help="Why; kept with the schedule.")
@_zone
@json_option
def pause(name: str, until: str | None, reason: str | None, tz: str | None, as_json: bool) -> None:
    """Pause a schedule; fire times in the pause are not caught up."""
    connections = connect("jobledger-cli")
    end = _moment_reader(connections, name, tz)(until, "until") if until is not None else None
    control.pause(connections, name, who(), end, reason)
    found = control.overview(connections, name, NEXT_TIMES)
    if as_json:
        print_json(_as_json(found))
    else:
        say(f"{name} is paused {f'until {_local(found.row.paused_until)} UTC' if end else 'until it is resumed'}.")


@schedules.command()
@_name
@json_option
@click.pass_context
def resume(context: click.Context, name: str, as_json: bool) -> None:
    """End a pause."""
    connections = connect("jobledger-cli")
    was_paused = control.resume(connections, name)
    found = control.overview(connections, name, NEXT_TIMES)
    if as_json:
        print_json({"resumed": was_paused, **_as_json(found)})
    elif was_paused:
        say(f"{name} is active; it fires next at {_next(found)[0] or 'no time'} ({found.row.timezone}).")
    else:
        say(f"{name} was not paused.")
    context.exit(ExitCode.DONE if was_paused else ExitCode.FAILED)


@schedules.command()
@_name
@click.option("--from", "since", required=True, help="The first moment of the range, such as 2026-01-01.")
@click.option("--to", "until", required=True, help="Its last moment; a day alone means its beginning.")
@click.option("--dry-run", is_flag=True, help="Only show the fire times.")
@_zone
@_wait
@json_option
@click.pass_context
def backfill(
    context: click.Context,
    name: str,
    since: str,
    until: str,
    dry_run: bool,
    tz: str | None,
    wait_seconds: float,
    as_json: bool,
) -> None:
    """Fire the fire times of a past range that were not fired yet, oldest first. A repetition adds nothing."""
    connections = connect("jobledger-cli")
    read = _moment_reader(connections, name, tz)
    asked = control.backfill(connections, name, read(since, "from"), read(until, "to"), who(), dry_run=dry_run)
    summary = {"fire_times": asked.fire_times, "added": asked.added}
    if dry_run or not asked.added:
        if as_json:
            print_json({**summary, "ticks": []})
        elif dry_run:
            show_table(("FIRE TIME, UTC",), [(one,) for one in asked.fire_times])
        if not as_json:
            say(f"{len(asked.fire_times)} fire times{'' if dry_run else ', all of them fired or waiting already'}.")
        return
    if not as_json:
        say(f"{len(asked.fire_times)} fire times, {len(asked.added)} to be fired.")
    _follow(context, connections, name, asked.added, wait_seconds, as_json, summary)


def _follow(
    context: click.Context,
    connections: Connections,
    name: str,
    fire_times: tuple[datetime, ...],
    wait_seconds: float,
    as_json: bool,
    summary: dict[str, Any],
) -> None:
    """Wait until ticks were fired, if `--wait` is given, and print their outcomes."""
    rows = _waited_for(connections, name, fire_times, wait_seconds)
    left = [one for one in rows if one.outcome is TickOutcome.WAITING]
    if as_json:
        print_json({**summary, "ticks": [_tick_as_json(one) for one in rows]})
    elif wait_seconds:
        show_table(("FIRE TIME, UTC", "OUTCOME", "REASON"), [(one.fire_at, one.outcome, one.reason) for one in rows])
    else:
        say(f"{name} is asked to fire {len(fire_times)} times." if len(fire_times) > 1 else f"{name} is asked to fire.")
        _say_if_nobody_fires(connections)
    if wait_seconds and left:
        _say_if_nobody_fires(connections)
    context.exit(ExitCode.FAILED if wait_seconds and any(one.outcome is not TickOutcome.FIRED for one in rows) else 0)


def _waited_for(
    connections: Connections, name: str, fire_times: tuple[datetime, ...], wait_seconds: float
) -> list[TickRow]:
    deadline, done = time.monotonic() + wait_seconds, 0
    with progress(f"Firing {name}", len(fire_times), show=wait_seconds > 0) as advance:
        while True:
            rows = control.progress(connections, name, fire_times)
            decided = sum(one.outcome is not TickOutcome.WAITING for one in rows)
            for _ in range(decided - done):
                advance()
            done = max(done, decided)
            if done >= len(fire_times) or time.monotonic() >= deadline:
                return rows
            time.sleep(LOOK_SECONDS)


def _moment_reader(connections: Connections, name: str, tz: str | None) -> Callable[[str, str], datetime]:
    """A parser of times in the given time zone, or else in the schedule's."""
    timezone = zone_name(tz) if tz is not None else control.overview(connections, name, 0).row.timezone
    return lambda text, what: moment(text, timezone, what)


def _say_if_nobody_fires(connections: Connections) -> None:
    if not control.is_anybody_firing(connections):
        click.echo(NO_SCHEDULER, err=True)


def _state(one: Overview) -> str:
    if one.state != "paused" or one.row.paused_at is None:
        return one.state
    until = f" until {_local(one.row.paused_until)} UTC" if one.row.paused_until is not None else ""
    why = f": {one.row.pause_reason}" if one.row.pause_reason else ""
    return f"paused by {one.row.paused_by}{until}{why}"


def _next(one: Overview) -> tuple[str | None, datetime | None]:
    return (_local(one.next_times[0]), one.next_times[0]) if one.next_times else (None, None)


def _last(one: Overview) -> datetime | None:
    return one.last.fire_at if one.last is not None else None


def _local(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment is not None else "-"


def _as_json(one: Overview) -> dict[str, Any]:
    row = one.row
    return {
        "name": row.name,
        "state": one.state,
        "expression": row.trigger,
        "words": one.words,
        "timezone": row.timezone,
        "dispatches": one.target,
        "definition": row.definition,
        "next": [{"local": time, "utc": time.astimezone(UTC)} for time in one.next_times],
        "last": _tick_as_json(one.last) if one.last is not None else None,
        "paused": {"at": row.paused_at, "until": row.paused_until, "by": row.paused_by, "reason": row.pause_reason}
        if one.state == "paused"
        else None,
        "removed_at": row.removed_at,
        "error": {"message": row.error, "at": row.failed_at} if row.error is not None else None,
    }


def _tick_as_json(row: TickRow) -> dict[str, Any]:
    return {
        "fire_at": row.fire_at,
        "previous_at": row.previous_at,
        "kind": row.kind,
        "outcome": row.outcome,
        "fired_at": row.fired_at,
        "reason": row.reason,
    }
