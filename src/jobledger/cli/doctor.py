"""`doctor`."""

from collections import Counter
from collections.abc import Iterator

import click

from jobledger.cli.check import job_classes, load_modules, unheard_queues
from jobledger.cli.configuration import connect
from jobledger.cli.exits import ExitCode
from jobledger.cli.output import print_json, say, show_table
from jobledger.cli.parameters import json_option
from jobledger.ledger.migrate import revisions
from jobledger.maintenance.doctor import Finding, Severity, examine, repair
from jobledger.settings import Settings


@click.command()
@click.option("--repair", "wants_repair", is_flag=True, help="Repair drift, then check again.")
@json_option
@click.pass_context
def doctor(context: click.Context, wants_repair: bool, as_json: bool) -> None:
    """Check the settings, the servers, the processes and the jobs, and report problems.

    Warnings change nothing about the exit code: it is 1 if there is a problem, and 3 if a server is away.
    """
    connections = connect("jobledger-cli", needs_redis=True)
    known = revisions()
    configured, findings = list(_configuration(connections.settings)), examine(connections, known)
    mended: Counter[str] = Counter()
    if wants_repair and not any(one.verdict is Severity.AWAY or _lacks_schema(one) for one in findings):
        mended, failed = repair(connections)
        findings = [*examine(connections, known), *failed]
    findings = [*configured, *findings]
    if as_json:
        print_json({"findings": [_as_json(one) for one in findings], "mended": mended})
    else:
        for what, count in mended.items():
            say(f"mended: {count} {what}")
        rows = [(one.subject, one.verdict.value, one.message, one.remedy or None) for one in findings]
        show_table(("WHAT", "IS", "BECAUSE", "DO"), rows)
    context.exit(_exit_code(findings))


def _configuration(settings: Settings) -> Iterator[Finding]:
    """The findings of `check` about the job modules and their queues."""
    broken, classes = load_modules(settings), job_classes(settings)
    for problem in broken:
        yield Finding("settings", Severity.PROBLEM, problem, "Mend the module, or JOBLEDGER_JOB_MODULES.")
    unheard = unheard_queues(settings, classes)
    for warning in unheard:
        yield Finding(
            "settings", Severity.WARNING, warning, "Add it to JOBLEDGER_QUEUES, or start workers that name it."
        )
    if not (broken or unheard):
        yield Finding("settings", Severity.OK, f"{len(classes)} job types are defined here, all for JOBLEDGER_QUEUES")


def _lacks_schema(finding: Finding) -> bool:
    return finding.subject == "schema" and finding.verdict is Severity.PROBLEM


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "subject": finding.subject,
        "verdict": finding.verdict.value,
        "message": finding.message,
        "remedy": finding.remedy,
    }


def _exit_code(findings: list[Finding]) -> ExitCode:
    verdicts = {one.verdict for one in findings}
    if Severity.AWAY in verdicts:
        return ExitCode.AWAY
    return ExitCode.FAILED if Severity.PROBLEM in verdicts else ExitCode.DONE
