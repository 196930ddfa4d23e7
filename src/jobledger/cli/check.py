"""`check`."""

from typing import Any, Final

import click

from jobledger.cli.configuration import wrong_urls
from jobledger.cli.exits import ExitCode
from jobledger.cli.output import print_json, say, show_table
from jobledger.cli.parameters import json_option
from jobledger.errors import ConfigurationError
from jobledger.registry import load_job_modules, registry
from jobledger.schedules import scheduler as book
from jobledger.settings import Settings, load_settings

_INTERNAL: Final = "jobledger."
"""Prefix of the job types for jobledger's own use."""


@click.command()
@json_option
@click.pass_context
def check(context: click.Context, as_json: bool) -> None:
    """Check the configuration, without any server.

    Reads the settings, imports the job modules, and shows the job classes and schedules that are defined there. Ends
    with 2 if a setting is wrong, with 1 if a module of jobs cannot be loaded. Warnings change nothing.
    """
    settings = load_settings()
    wrong, broken = wrong_urls(settings), load_modules(settings)
    classes, schedules = job_classes(settings), [{"name": one.name, "trigger": one.expression} for one in book]
    warnings = [*_missing_urls(settings), *unheard_queues(settings, classes)]
    if as_json:
        print_json({"problems": [*wrong, *broken], "warnings": warnings, "job_types": classes, "schedules": schedules})
    else:
        show_table(
            ("JOB TYPE", "QUEUE", "TIMEOUT", "ATTEMPTS", "API", "CLASS"),
            [
                (one["type"], one["queue"], f"{one['timeout_seconds']:g} s", one["max_attempts"],
                 "yes" if one["api_dispatchable"] else "no", one["class"])
                for one in classes
            ],
        )  # fmt: skip
        say("")
        show_table(("SCHEDULE", "TRIGGER"), [(one["name"], one["trigger"]) for one in schedules])
        say("")
        for kind, texts in (("warning", warnings), ("problem", [*wrong, *broken])):
            for text in texts:
                say(f"{kind}: {text}")
        say(f"{len(wrong) + len(broken)} problems, {len(warnings)} warnings.")
    context.exit(ExitCode.WRONG if wrong else ExitCode.FAILED if broken else ExitCode.DONE)


def load_modules(settings: Settings) -> list[str]:
    """Import the job modules one by one; return the errors of those that cannot be imported."""
    problems = []
    for modules in [[], *([name] for name in settings.job_modules)]:
        try:
            load_job_modules(modules)
        except ConfigurationError as error:
            problems.append(str(error))
    return problems


def job_classes(settings: Settings) -> list[dict[str, Any]]:
    """The loaded job classes, as `check` shows them."""
    return [
        {
            "type": one.job_type,
            "class": f"{one.__module__}.{one.__qualname__}",
            "queue": one.options.chosen_queue,
            "priority": one.options.priority,
            "timeout_seconds": one.options.timeout_seconds or settings.default_timeout_seconds,
            "max_attempts": one.retry.max_attempts,
            "api_dispatchable": one.api_dispatchable,
        }
        for one in registry
        if not one.job_type.startswith(_INTERNAL)
    ]


def _missing_urls(settings: Settings) -> list[str]:
    return [
        f"JOBLEDGER_{name.upper()} is not set: only `up` works so, with a server of its own."
        for name in ("database_url", "redis_url")
        if getattr(settings, name) is None
    ]


def unheard_queues(settings: Settings, classes: list[dict[str, Any]]) -> list[str]:
    """Warnings about queues that job classes use and workers do not read."""
    return [
        f"{one['type']} goes to the queue {one['queue']!r}, which is not in JOBLEDGER_QUEUES: no worker takes it there."
        for one in classes
        if one["queue"] not in settings.queues
    ]
