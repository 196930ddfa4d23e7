"""`jobs`: show, retry and cancel jobs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import click
from sqlalchemy.exc import SQLAlchemyError

from jobledger import control
from jobledger.cli.configuration import connect, who
from jobledger.cli.exits import ExitCode
from jobledger.cli.output import confirm, escaped, print_json, progress, say, say_block, show_table
from jobledger.cli.parameters import MOMENT, json_option
from jobledger.connections.default import Connections
from jobledger.control import Answer, Selection, Verdict
from jobledger.domain.status import JobStatus
from jobledger.errors import JobNotFound, LedgerUnavailable
from jobledger.ledger import queries
from jobledger.ledger.queries import AttemptRow, Filter

READ_SECONDS: Final = 15.0
MANY: Final = 20
"""Number of jobs from which a bar shows the progress."""

MOST_REFUSALS: Final = 5
"""Most different answers that are shown; all are counted."""

_STATUSES: Final = [status.value for status in JobStatus]  # click would use the names of the members themselves


@click.group()
def jobs() -> None:
    """List, show, retry and cancel jobs."""


@jobs.command("list")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(_STATUSES), help="In this status; may be repeated."
)
@click.option("--type", "job_type", help="Of this type.")
@click.option("--queue", help="Of this queue.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("--before", type=click.UUID, metavar="ID", help="Created before this job: the last of the page before.")
@json_option
def list_jobs(
    statuses: tuple[str, ...],
    job_type: str | None,
    queue: str | None,
    limit: int,
    before: UUID | None,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    wanted = Filter([JobStatus(one) for one in statuses], job_type, queue, before)
    with connect("jobledger-cli").transaction(READ_SECONDS) as connection:
        page = queries.newest(connection, wanted, limit + 1)
    shown, more = page[:limit], len(page) > limit
    if as_json:
        print_json({"jobs": [asdict(one) for one in shown], "next": shown[-1].id if more else None})
        return
    show_table(
        ("ID", "STATUS", "TYPE", "QUEUE", "ATTEMPT", "CREATED", "REASON", "TITLE"),
        [
            # A held job has no reason yet, so one column shows both.
            (
                one.id,
                one.status,
                one.job_type,
                one.queue,
                one.attempt,
                one.created_at,
                one.held_by or one.reason,
                one.title,
            )
            for one in shown
        ],
    )
    if more:
        click.echo(f"There are more: --before {shown[-1].id}", err=True)


@jobs.command("show")
@click.argument("job_id", metavar="ID", type=click.UUID)
@click.option("--traceback", is_flag=True, help="With the traceback of each attempt; JSON always has it.")
@click.option("--log", is_flag=True, help="With the last lines that each attempt logged; JSON always has them.")
@json_option
def show_job(job_id: UUID, traceback: bool, log: bool, as_json: bool) -> None:
    """Show everything in the ledger about a job."""
    with connect("jobledger-cli").transaction(READ_SECONDS) as connection:
        row = queries.job(connection, job_id)
        attempts = queries.attempts(connection, job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id}: never dispatched, rolled back, or pruned.")
    if as_json:
        print_json({"job": asdict(row), "attempts": [asdict(one) for one in attempts]})
        return
    show_table(("FIELD", "VALUE"), list(asdict(row).items()))
    if attempts:
        say("")
        show_table(
            ("ATTEMPT", "OUTCOME", "STARTED", "SECONDS", "WORKER", "HOST", "PID", "PROGRESS", "ERROR"),
            [_attempt_cells(one) for one in attempts],
        )
    for one in attempts:
        if traceback and one.traceback is not None:
            say_block(f"Traceback of attempt {one.number}", one.traceback)
        if log and one.log_tail is not None:
            say_block(f"Log of attempt {one.number}", one.log_tail)


def _attempt_cells(one: AttemptRow) -> tuple[object, ...]:
    took = (one.finished_at - one.started_at).total_seconds() if one.finished_at is not None else None
    done = [str(part) for part in (one.progress_done, one.progress_total) if part is not None]
    progress_made = " ".join(part for part in ("/".join(done), one.progress_note) if part) or None
    error = f"{one.error_type or 'died'}: {one.error_message}" if one.error_message is not None else one.error_type
    return (
        one.number, one.outcome or "running", one.started_at, took, one.worker, one.host, one.pid, progress_made, error
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Which:
    """The options that select jobs instead of ids, and the options of the action."""

    statuses: Sequence[str]
    job_type: str | None
    queue: str | None
    is_all: bool
    before_now: bool
    until: datetime | None
    dry_run: bool
    yes: bool

    def filter(self, job_ids: Sequence[UUID]) -> Filter | None:
        """The filter for the jobs; None if ids are given.

        Raises:
            click.UsageError: the options do not select jobs, or contradict each other.
        """
        has_filter = bool(self.statuses or self.job_type or self.queue)
        is_selecting = has_filter or self.is_all or self.before_now or self.until is not None
        if bool(job_ids) == is_selecting:
            raise click.UsageError("Say ids, or which jobs: --status, --type, --queue or --all, with --before-now.")
        if not is_selecting:
            if self.dry_run:
                raise click.UsageError("--dry-run is for jobs that options select: `jobs show` shows one.")
            return None
        if has_filter == self.is_all:
            raise click.UsageError("Say which jobs, by --status, --type or --queue; or --all, for all there are.")
        if self.before_now == (self.until is not None):
            words = "Say --before-now, or --before with the moment of an earlier command: newer jobs stay."
            raise click.UsageError(words)
        return Filter([JobStatus(one) for one in self.statuses], self.job_type, self.queue)


def _selecting(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument for ids, and the options that select jobs instead."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask. Needed without a terminal."),
        click.option("--dry-run", is_flag=True, help="Only show which jobs are selected."),
        click.option(
            "--before", "until", type=MOMENT, help="Jobs that existed at this moment; continues an earlier command."
        ),
        click.option("--before-now", is_flag=True, help="Jobs that exist now, and no newer ones."),
        click.option("--all", "is_all", is_flag=True, help="Of every type and queue."),
        click.option("--queue", help="Of this queue."),
        click.option("--type", "job_type", help="Of this type."),
        click.option(
            "--status", "statuses", multiple=True, type=click.Choice(_STATUSES), help="In this status; may be repeated."
        ),
        click.argument("job_ids", metavar="[ID…]", type=click.UUID, nargs=-1),
    ):
        command = option(command)
    return command


@jobs.command("retry")
@_selecting
@json_option
@click.pass_context
def retry_jobs(context: click.Context, /, job_ids: tuple[UUID, ...], as_json: bool, **which: Any) -> None:
    """Queue failed or canceled jobs again, with fresh budgets: by their ids, or all that options select.

    Without a status, failed jobs are selected; each is retried once.
    """
    said = _Which(**which)
    wanted = said.filter(job_ids)
    connections = connect("jobledger-cli", needs_redis=True)
    if wanted is None:
        _ask_each(context, "Retrying", job_ids, lambda one: control.retry(connections, one, who()), as_json)
        return
    selection = control.to_retry(connections, wanted, said.until)
    if said.dry_run:
        _show_selection(connections, selection, as_json)
        return
    _confirm(f"Queue {selection.count} jobs again?", selection, said)
    _ask_all(context, "Retrying", selection, control.retry_selected(connections, selection, who()), as_json)


@jobs.command("cancel")
@_selecting
@click.option("--reason", default="", help="Why; kept with the job.")
@json_option
@click.pass_context
def cancel_jobs(context: click.Context, /, job_ids: tuple[UUID, ...], reason: str, as_json: bool, **which: Any) -> None:
    """Cancel jobs, and by default their children, too: by their ids, or all that options select.

    Running jobs are interrupted within 15 seconds. Without a status, all jobs that have not ended are selected.
    """
    said = _Which(**which)
    wanted = said.filter(job_ids)
    connections = connect("jobledger-cli")
    if wanted is None:
        _ask_each(context, "Canceling", job_ids, lambda one: control.cancel(connections, one, who(), reason), as_json)
        return
    selection = control.to_cancel(connections, wanted, said.until)
    if said.dry_run:
        _show_selection(connections, selection, as_json)
        return
    _confirm(f"Cancel {selection.count} jobs, and all that waits for them?", selection, said)
    _ask_all(context, "Canceling", selection, control.cancel_selected(connections, selection, who(), reason), as_json)


def _show_selection(connections: Connections, selection: Selection, as_json: bool) -> None:
    groups = control.kinds(connections, selection)
    if as_json:
        rows = [asdict(one) for one in groups]
        print_json({"before": selection.until.isoformat(), "selected": selection.count, "groups": rows})
        return
    show_table(("STATUS", "TYPE", "QUEUE", "JOBS"), [(one.status, one.job_type, one.queue, one.jobs) for one in groups])
    say(f"Selected: {selection.count}. Nothing was changed.")


def _confirm(question: str, selection: Selection, said: _Which) -> None:
    if selection.count:
        confirm(question, said.yes)


def _ask_all(
    context: click.Context, what: str, selection: Selection, batches: Iterator[list[Answer]], as_json: bool
) -> None:
    """Change the jobs batch by batch, and print the counts; and the moment, to continue after an interruption."""
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    failure: Exception | None = None
    with progress(what, selection.count, show=selection.count > MANY) as advance:
        try:
            for answers in batches:
                for one in answers:
                    counts[one.verdict] += 1
                    if one.verdict is Verdict.REFUSED:
                        refusals[one.message] += 1
                    advance()
        except (LedgerUnavailable, SQLAlchemyError) as error:
            failure = error
    until = selection.until.isoformat()
    numbers = {verdict.value: counts[verdict] for verdict in Verdict}
    if as_json:
        print_json({"before": until, "selected": selection.count, **numbers})
    else:
        show_table(("SELECTED", *(name.upper() for name in numbers)), [(selection.count, *numbers.values())])
    for why, times in refusals.most_common(MOST_REFUSALS):
        click.echo(f"jobledger: refused, {times} times: {escaped(why)}", err=True)
    if failure is not None:
        code, _, message = ExitCode.of(failure)
        click.echo(f"jobledger: {escaped(message)}; go on with --before {until} instead of --before-now", err=True)
        context.exit(code)


def _ask_each(
    context: click.Context, what: str, job_ids: Sequence[UUID], ask: Callable[[UUID], Answer], as_json: bool
) -> None:
    """Make a request for each job, print each answer, and exit with 1 if any was refused.

    If Postgres goes away meanwhile, the answers until then are still printed.
    """
    ids = list(dict.fromkeys(job_ids))
    answers: list[Answer] = []
    failure: Exception | None = None
    with progress(what, len(ids), show=len(ids) > MANY) as advance:
        for job_id in ids:
            try:
                answers.append(ask(job_id))
            except (LedgerUnavailable, SQLAlchemyError) as error:
                failure = error
                break
            advance()
    results: list[dict[str, Any]] = [
        {"id": one.job_id, "result": one.verdict, "status": one.status, "message": one.message} for one in answers
    ]
    for job_id in ids[len(answers) :]:
        results.append({"id": job_id, "result": "unknown", "status": None, "message": str(failure)})
    if as_json:
        print_json({"results": results})
    else:
        show_table(("ID", "RESULT", "MESSAGE"), [(one["id"], one["result"], one["message"]) for one in results])
    if failure is not None:
        code, _, message = ExitCode.of(failure)
        click.echo(f"jobledger: {escaped(message)}", err=True)
        context.exit(code)
    context.exit(ExitCode.DONE if all(one.is_granted for one in answers) else ExitCode.FAILED)
