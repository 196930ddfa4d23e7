"""Every end of an attempt: its outcome decides the job's next status. Used by the worker, the keeper and the reaper.

Deciding (`decide`) is pure; writing (`settle`) is one guarded statement, and more if the job has children. `announce`
alone does what follows the commit of any move.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

from sqlalchemy.engine import Connection
from uuid6 import uuid7

from jobledger.connections.default import Connections
from jobledger.domain.endings import RetryIn, Snooze
from jobledger.domain.payload import storable
from jobledger.domain.records import Evidence, Failed, Wake
from jobledger.domain.retry import Retry
from jobledger.domain.status import JobStatus, Outcome, Reason
from jobledger.ledger import moves
from jobledger.ledger.direct import Direct, Executor
from jobledger.lifecycle import limits
from jobledger.lifecycle.children import propagate_end, propagate_quietly
from jobledger.lifecycle.push import push_quietly

MAX_CRASHES: Final = 3
MAX_LOSSES: Final = 20
CRASH_BACKOFF: Final = Retry(MAX_CRASHES, backoff="fixed", base=1)
LOSS_BACKOFF: Final = Retry(MAX_LOSSES, backoff="exponential", base=2, cap=60)
"""A lost attempt is not the job's fault: the job runs again at once. But if the attempt reported the cause, such as a
full disk or a lost connection, and was not the first loss, the cause gets time to pass."""

TELL_SECONDS: Final = 0.5
"""The process that ended a job tells its children for so long; then schedulers do."""

UNKNOWN_TYPE_WAIT_SECONDS: Final = 30.0
UNKNOWN_TYPE_LIMIT_SECONDS: Final = 3600.0


class Budgets(Protocol):
    """The columns of a row that decide whether another attempt follows."""

    @property
    def max_attempts(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def crashes(self) -> int: ...
    @property
    def losses(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt after a wait."""

    wait_seconds: float
    spent: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HandBack:
    """Another worker may run the job now: nothing is spent, and it keeps its place."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The job has failed for good."""

    reason: Reason
    spent: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CancelRunning:
    """The job is canceled."""

    reason: str


Decision = Again | HandBack | Fail | CancelRunning

CANCELED_ITSELF: Final = "canceled by itself"
CANCELED_ON_REQUEST: Final = "canceled on request"
"""Used if the request, which has the person and the reason, is gone."""

LONGEST_REASON: Final = 1000
"""Characters that are kept of a job's reason to cancel itself."""


def decide(
    outcome: Outcome,
    budgets: Budgets,
    retry: Retry = Retry(),  # noqa: B008 - frozen
    error: BaseException | None = None,
    unknown_for_seconds: float = 0.0,
    *,
    server_restarted: bool = False,
) -> Decision:
    """Decide what follows an attempt that did not complete. Pure.

    Args:
        outcome: how the attempt ended.
        budgets: the counters of the row, before this attempt is counted.
        retry: the class's policy; it decides about errors and timeouts only.
        error: what was raised.
        unknown_for_seconds: for how long no worker has known the job's type.
        server_restarted: Postgres has restarted since the attempt began; then a loss is not counted.
    """
    match outcome:
        case Outcome.ERROR | Outcome.TIMEOUT:
            spent = {"errors": 1}
            failures = budgets.errors + 1
            if failures >= budgets.max_attempts or (error is not None and not retry.allows(error)):
                return Fail(Reason(outcome.value), spent)
            if isinstance(error, RetryIn):
                return Again(error.wait_seconds, spent)
            return Again(retry.jittered(retry.wait_seconds(failures)), spent)
        case Outcome.SNOOZED:
            return Again(error.wait_seconds if isinstance(error, Snooze) else 0.0)
        case Outcome.CANCELED:
            return CancelRunning(f"{CANCELED_ITSELF}: {error}" if error is not None and str(error) else CANCELED_ITSELF)
        case Outcome.GAVE_UP:
            return Fail(Reason.ERROR, {"errors": 1})
        case Outcome.CRASHED:
            spent = {"crashes": 1}
            crashes = budgets.crashes + 1
            if crashes >= MAX_CRASHES:
                return Fail(Reason.CRASHED, spent)
            return Again(CRASH_BACKOFF.jittered(CRASH_BACKOFF.wait_seconds(crashes)), spent)
        case Outcome.LOST:
            if server_restarted:
                return Again(0.0)
            spent = {"losses": 1}
            if budgets.losses + 1 >= MAX_LOSSES:
                return Fail(Reason.LOST, spent)
            if error is None or budgets.losses == 0:
                return Again(0.0, spent)
            return Again(LOSS_BACKOFF.jittered(LOSS_BACKOFF.wait_seconds(budgets.losses)), spent)
        case Outcome.HANDED_BACK:
            return HandBack()
        case Outcome.UNKNOWN_TYPE:
            if unknown_for_seconds >= UNKNOWN_TYPE_LIMIT_SECONDS:
                return Fail(Reason.UNDISPATCHABLE)
            return Again(UNKNOWN_TYPE_WAIT_SECONDS)
        case Outcome.COMPLETED:
            raise ValueError("Nothing follows a completed attempt: call complete() instead of decide().")


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of an attempt of a job, or of several together. After the commit comes `announce`.

    Attributes:
        wakes: jobs that may run now, to be pushed after the commit.
        wait_seconds: for a scheduled job, until its next attempt.
        untold: jobs whose children have yet to be told of their end.
    """

    status: JobStatus
    wakes: Sequence[Wake] = ()
    wait_seconds: float | None = None
    untold: Collection[UUID] = ()


def complete(
    connection: Executor, job_id: UUID, attempt: int, result: str | None, evidence: Evidence
) -> Settled | None:
    """Write `completed` in the transaction of the job's effects, and release its children.

    Returns:
        None if the attempt was fenced out: the caller rolls everything back.
    """
    ended = moves.complete(connection, job_id, attempt, result, evidence)
    if ended is None:
        return None
    return settled_with_children(connection, job_id, JobStatus.COMPLETED, has_children=ended.has_children)


def complete_alone(
    connection: Executor, job_id: UUID, attempt: int, result: str | None, evidence: Evidence
) -> Settled | None:
    """Write `completed` in one statement that is a transaction of its own, for a job that wrote nothing.

    Returns:
        None if the job has children, which `complete` will release, or if the attempt was fenced out.
    """
    ended = moves.complete(connection, job_id, attempt, result, evidence, only_childless=True)
    return Settled(JobStatus.COMPLETED) if ended is not None else None


def settle(
    connection: Connection,
    job_id: UUID,
    attempt: int,
    outcome: Outcome,
    decision: Decision,
    evidence: Evidence,
) -> Settled | None:
    """Write the end of an attempt that did not complete, as decided.

    A job with a cancel request is canceled, whatever was decided: it has not completed.

    Returns:
        None if the attempt was fenced out: another process has written its end.
    """
    if isinstance(decision, CancelRunning):
        return _cancel_running(connection, job_id, attempt, outcome, decision.reason, evidence)
    settled = _settle_unless_requested(connection, job_id, attempt, outcome, decision, evidence)
    return settled or _cancel_running(connection, job_id, attempt, outcome, CANCELED_ON_REQUEST, evidence)


def _settle_unless_requested(
    connection: Connection,
    job_id: UUID,
    attempt: int,
    outcome: Outcome,
    decision: Again | HandBack | Fail,
    evidence: Evidence,
) -> Settled | None:
    if isinstance(decision, HandBack):
        wake = moves.hand_back(connection, job_id, attempt, outcome, evidence)
        return Settled(JobStatus.QUEUED, [wake]) if wake is not None else None
    if isinstance(decision, Again):
        moved = moves.reschedule(connection, job_id, attempt, outcome, decision.wait_seconds, decision.spent, evidence)
        return Settled(JobStatus.SCHEDULED, wait_seconds=decision.wait_seconds) if moved else None
    callback_id = UUID(int=uuid7().int)
    failed = moves.fail(connection, job_id, attempt, outcome, decision.reason, decision.spent, evidence, callback_id)
    if failed is None:
        return None
    return settled_as_failed(connection, job_id, failed)


def _cancel_running(
    connection: Connection, job_id: UUID, attempt: int, outcome: Outcome, reason: str, evidence: Evidence
) -> Settled | None:
    ended = moves.cancel_running(connection, job_id, attempt, outcome, storable(reason)[:LONGEST_REASON], evidence)
    if ended is None:
        return None
    return settled_with_children(connection, job_id, JobStatus.CANCELED, has_children=ended.has_children)


def settled_as_failed(connection: Connection, job_id: UUID, failed: Failed) -> Settled:
    """Tell the children of a job that this transaction has failed, in the same transaction.

    Args:
        failed: the result of its move.
    """
    return settled_with_children(
        connection, job_id, JobStatus.FAILED, has_children=failed.has_children, callback=failed.callback
    )


def settled_with_children(
    connection: Executor, job_id: UUID, status: JobStatus, *, has_children: bool, callback: Wake | None = None
) -> Settled:
    """Tell the children of a job that this transaction has ended, in the same transaction.

    Args:
        connection: in that transaction.
        status: of the job's end.
        has_children: whether any job waits, or has waited, for it.
        callback: the `on_failed` job that the end has inserted.
    """
    first = [callback] if callback is not None else []
    if not has_children:
        return Settled(status, first)
    told = propagate_end(connection, job_id)
    return Settled(status, [*first, *told.wakes], untold=told.untold)


def announce(
    connections: Connections, settled: Settled | None, freed: Collection[UUID] = (), direct: Direct | None = None
) -> None:
    """Do what follows the commit of a move: push the jobs that may run now, pass the slots of others on, and tell more
    children of the job, if they are many.

    Nothing is raised: repair does the rest.

    Args:
        connections: the servers.
        settled: the committed end; None for an attempt that was fenced out.
        freed: jobs that may have had slots and have ended, or wait for a time; other jobs keep their slots.
        direct: in autocommit; None for connections from the pool.
    """
    if settled is not None:
        push_quietly(connections, settled.wakes)
    if freed:
        limits.pass_on(connections, list(freed), direct)
    if settled is not None and settled.untold:
        propagate_quietly(connections, settled.untold, TELL_SECONDS)
