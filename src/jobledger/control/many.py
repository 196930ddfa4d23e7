"""Retry or cancel many jobs by a filter: the jobs that existed at one moment, batch by batch."""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from jobledger.connections.default import Connections
from jobledger.connections.locks import LockPatience, LockTimeout
from jobledger.control.answer import BATCH, DEADLINE_SECONDS, Answer, Verdict, who_and_why
from jobledger.control.jobs import Terms, answer_locked, cancel_if, retry_if
from jobledger.domain.status import UNFINISHED, JobStatus
from jobledger.errors import OptionError
from jobledger.ledger import moves, queries, stats
from jobledger.ledger.queries import Filter, Group
from jobledger.lifecycle.finish import Settled, announce
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

READ_SECONDS: Final = 60.0
"""Longest query for selected jobs."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The jobs that match a filter and existed at one moment; later jobs are never changed.

    Attributes:
        wanted: the filter: statuses, job type and queue.
        until: the moment, by the database's clock.
        count: number of jobs when the selection was made.
    """

    wanted: Filter
    until: datetime
    count: int


def to_cancel(connections: Connections, wanted: Filter, until: datetime | None = None) -> Selection:
    """Select jobs to be canceled.

    Args:
        connections: the servers.
        wanted: the filter; without statuses, all jobs that have not ended.
        until: select jobs that existed at this moment; None for now. The moment of an earlier selection continues that
            selection after an interruption.

    Returns:
        The selection.

    Raises:
        OptionError: jobs in one of the statuses cannot be canceled.
        LedgerUnavailable: Postgres is away.
    """
    return _select(connections, wanted, until, UNFINISHED, default=UNFINISHED)


def to_retry(connections: Connections, wanted: Filter, until: datetime | None = None) -> Selection:
    """Select jobs to be retried, which had ended by `until`; without statuses, failed jobs. See `to_cancel`."""
    return _select(connections, wanted, until, _RETRIED, default={JobStatus.FAILED})


def kinds(connections: Connections, selection: Selection) -> list[Group]:
    """Count the selected jobs now by status, type and queue.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    ended = _RETRIED.issuperset(selection.wanted.statuses)
    with connections.transaction(READ_SECONDS) as connection:
        return queries.selected_by_kind(connection, selection.wanted, selection.until, ended=ended)


def cancel_selected(
    connections: Connections, selection: Selection, by: str, reason: str = ""
) -> Iterator[list[Answer]]:
    """Cancel many jobs, batch by batch; each batch is committed before its answers are yielded.

    A job that has left the selected statuses, or whose row is locked, is refused.

    Args: see `cancel`.

    Yields:
        The answers of one batch.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    terms, patience = Terms(selection.wanted.statuses), LockPatience()
    for ids in _batches(connections, selection, ended=False):
        with connections.transaction(DEADLINE_SECONDS) as connection:
            done = moves.cancel_many(connection, ids, terms.statuses, who_and_why(by, reason))
        announce(connections, Settled(JobStatus.CANCELED), freed=done)
        yield [
            Answer(one, Verdict.DONE, JobStatus.CANCELED, "canceled")
            if one in done
            else _unless_locked(connections, one, partial(cancel_if, connections, one, by, reason, terms), patience)
            for one in ids
        ]
    log.info("Canceled selected jobs", count=selection.count, by=by)


def retry_selected(connections: Connections, selection: Selection, by: str) -> Iterator[list[Answer]]:
    """Retry many jobs in the same way. A job that has run and failed again since the selection is refused.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    terms, patience = Terms(selection.wanted.statuses, selection.until), LockPatience()
    for ids in _batches(connections, selection, ended=True):
        with connections.transaction(DEADLINE_SECONDS) as connection:
            wakes = moves.retry_many(connection, ids, terms.statuses, selection.until)
        announce(connections, Settled(JobStatus.QUEUED, wakes))
        done = {wake.id for wake in wakes}
        yield [
            Answer(one, Verdict.DONE, JobStatus.QUEUED, "queued again")
            if one in done
            else _unless_locked(connections, one, partial(retry_if, connections, one, by, terms), patience)
            for one in ids
        ]
    log.info("Queued selected jobs again", count=selection.count, by=by)


def _unless_locked(
    connections: Connections, job_id: UUID, ask: Callable[[float], Answer], patience: LockPatience
) -> Answer:
    """Ask for one job; if it stays locked, say so, so that the others are asked for."""
    try:
        return ask(patience.lock_seconds)
    except LockTimeout:
        patience.note_held()
        return answer_locked(connections, job_id)


_RETRIED: Final = frozenset({JobStatus.FAILED, JobStatus.CANCELED})


def _select(
    connections: Connections,
    wanted: Filter,
    until: datetime | None,
    allowed: Set[JobStatus],
    *,
    default: Set[JobStatus],
) -> Selection:
    wrong = sorted(set(wanted.statuses) - allowed)
    if wrong:
        raise OptionError(f"Jobs that are {wrong[0]} cannot be selected; say {', '.join(sorted(allowed))}.")
    whole = replace(wanted, statuses=sorted(wanted.statuses or default))
    with connections.transaction(READ_SECONDS) as connection:
        moment = until or stats.now(connection)
        count = queries.count_selected(connection, whole, moment, ended=allowed == _RETRIED)
    return Selection(whole, moment, count)


def _batches(connections: Connections, selection: Selection, *, ended: bool) -> Iterator[list[UUID]]:
    after: UUID | None = None
    while True:
        with connections.transaction(READ_SECONDS) as connection:
            ids = queries.selected(connection, selection.wanted, selection.until, after, BATCH, ended=ended)
        if ids:
            yield ids
            after = ids[-1]
        if len(ids) < BATCH:
            return
