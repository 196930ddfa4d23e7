"""The run of one delivery: a straight row of steps. Claim, load, perform under lease and alarm, finish.

Effects and `completed` commit together: what a job writes through its session commits in the transaction of the
finishing statement, which is guarded by the fence. Failures are written on a fresh connection.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg2
import sqlalchemy as sa
from pydantic_core import PydanticSerializationError, to_jsonable_python
from sqlalchemy.exc import DBAPIError

from jobledger.connections.default import Connections, default_connections
from jobledger.connections.postgres import NO_ROOM, TRY_AGAIN, is_connection_loss, sql_state
from jobledger.domain.endings import FencedOut, HandedBack, Interrupt, JobCanceled, JobTimeout
from jobledger.domain.payload import MAX_RESULT_BYTES, to_json
from jobledger.domain.records import Claim, Evidence
from jobledger.domain.retry import Retry
from jobledger.domain.status import JobStatus, Outcome
from jobledger.errors import ConfigurationError, LedgerUnavailable, PayloadError, UnknownJobType
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import leases, moves, queries
from jobledger.lifecycle import finish, limits
from jobledger.lifecycle.finish import Settled
from jobledger.lifecycle.push import push_quietly
from jobledger.observe.log import get_logger, set_up_logging
from jobledger.observe.log_run import LoggedRun, LogTail
from jobledger.registry import load_job_modules, registry
from jobledger.worker.connection import RunConnection
from jobledger.worker.context import RunContext
from jobledger.worker.interrupts import Alarm
from jobledger.worker.leases import Lease
from jobledger.worker.outcome import EffectsLost, classify, evidence_of
from jobledger.worker.process import die_with_parent, is_work_horse, this_runner
from jobledger.worker.spare import spare_of_this_worker
from jobledger.worker.stop import StopRequest

log: Final = get_logger(__name__)


T = TypeVar("T")

_STUCK: Final[dict[type[Interrupt], Outcome]] = {
    JobTimeout: Outcome.TIMEOUT,
    HandedBack: Outcome.HANDED_BACK,
    JobCanceled: Outcome.CANCELED,
}

LEDGER_PATIENCE_SECONDS: Final = 10.0
"""How long a delivery waits for Postgres before it gives its wake-up up; the reconciler makes another."""

END_PATIENCE_SECONDS: Final = 60.0
"""How long a run tries to write its end. A dispatch with `after=` may hold the row's lock; the reaper passes it by."""

WRITE_DEADLINE_SECONDS: Final = 5.0
_SHORT_LOCK_WAIT: Final = sa.text("SET LOCAL lock_timeout = '4s'")


def run_job(job_id: str) -> str:
    """Run one delivery of a job; what RQ calls for every wake-up.

    Args:
        job_id: id of the row.

    Returns:
        What became of it, in a few words, for RQ's tools.

    Raises:
        BaseException: the error of a job that failed for good, so that RQ's tools show it as failed; or
            LedgerUnavailable, if Postgres stayed away, full or locked.
    """
    connections = default_connections()
    if not logging.getLogger().handlers:  # a worker that was started without our configuration, or any other
        set_up_logging(connections.settings)
    run = Run(connections, UUID(job_id))
    if is_work_horse(job_id):
        die_with_parent()
        run.stop.listen()
    return run.execute()


class Run:
    """One delivery, from its claim to its end."""

    def __init__(self, connections: Connections, job_id: UUID) -> None:
        self.connections = connections
        self.job_id = job_id
        self.tail = LogTail()
        self.retry = Retry()
        self.runner = this_runner(connections.settings.code_version)
        self.stop = StopRequest(connections.settings, self.runner.worker)
        self.lease = Lease(connections, job_id, self.tail, self.stop, self._write_stuck)
        self.alarm: Alarm | None = None
        self.claim: Claim | None = None
        self.claim_lost = False
        self.logged: LoggedRun | None = None

    def execute(self) -> str:
        """The steps, in order."""
        with self.lease:
            connection, claim = self._patiently(self._claim, LEDGER_PATIENCE_SECONDS)
            if claim is None:
                end = "nothing to do: a duplicate delivery, or the job was canceled, held or has expired"
            else:
                end = self._run(connection, claim)
        connection.release()
        return end

    def rehearse(self, claim: Claim) -> None:
        """The same steps for a row that is not there: see `worker.rehearsal`."""
        with self.lease:
            connection, _ = self._claim()
            with self._log_as(claim):
                self._log_end(self._perform_and_complete(connection, claim))
        connection.release()

    def _claim(self) -> tuple[RunConnection, Claim | None]:
        connection = RunConnection(self.connections, spare_of_this_worker())
        lease_seconds = self.connections.settings.lease_seconds
        self.lease.claiming(connection)
        try:
            connection.autocommit()
            direct, runner = connection.direct, self.runner
            claim = moves.claim(direct, self.job_id, runner, lease_seconds)
            if claim is None:
                claim = limits.claim(self.connections, direct, self.job_id, runner, lease_seconds)
            if claim is None and self.claim_lost:
                claim = moves.claim_again(direct, self.job_id, runner, lease_seconds)
        except BaseException:
            self.claim_lost = True
            self.lease.claiming(None)
            connection.cut()
            raise
        return connection, claim

    def _run(self, connection: RunConnection, claim: Claim) -> str:
        with self._log_as(claim):
            try:
                settled = self._perform_and_complete(connection, claim)
            except BaseException as error:  # whatever a job raises is an outcome, also SystemExit
                settled = self._conclude(connection, claim, error)
                if settled is not None and settled.status is JobStatus.FAILED:
                    raise
            else:
                self._log_end(settled)
            return _in_words(settled)

    def _perform_and_complete(self, connection: RunConnection, claim: Claim) -> Settled | None:
        self.claim, self.alarm = claim, Alarm(claim.timeout_seconds)
        self.lease.claimed(claim.attempt, self.alarm)
        job_class = self._load(claim)  # under the lease, and outside of the job's own time
        context = RunContext(claim, self.tail, connection, self.alarm, self.lease)
        with self.alarm:
            reach(Failpoint.AFTER_CLAIM)
            result = _encode_result(job_class.run(context))
            context.flush()
        self.lease.ending()
        reach(Failpoint.BEFORE_FINISH)
        settled = self._complete(connection, claim, context, result)
        reach(Failpoint.AFTER_FINISH)
        if settled is not None:
            context.push_held()
            push_quietly(self.connections, settled.wakes)
        if claim.is_limited:
            self._pass_on_slots(connection, claim)
        return settled

    def _pass_on_slots(self, connection: RunConnection, claim: Claim) -> None:
        """Also of an attempt that was fenced out: what must not be given back is not."""
        if connection.is_gone:
            limits.pass_on(self.connections, [claim.id])
        else:
            connection.autocommit()
            limits.pass_on(self.connections, [claim.id], connection.direct)

    def _load(self, claim: Claim) -> Any:
        try:
            job_class = registry.lookup(claim.job_type)
        except UnknownJobType:
            job_class = self._load_modules_and_look_again(claim)
        self.retry = job_class.retry
        return job_class

    def _load_modules_and_look_again(self, claim: Claim) -> Any:
        """A worker that was started without our configuration has loaded nothing yet."""
        try:
            load_job_modules(self.connections.settings.job_modules)
        except ConfigurationError as error:  # a module of another deployment that does not work here
            raise UnknownJobType(str(error)) from error
        return registry.lookup(claim.job_type)

    def _complete(
        self, connection: RunConnection, claim: Claim, context: RunContext, result: str | None
    ) -> Settled | None:
        evidence = self._evidence()
        try:
            if not context.session_used:
                settled = finish.complete_alone(connection.committing, claim.id, claim.attempt, result, evidence)
                if settled is not None:
                    return settled
            context.lift_limits()
            connection.begin()
            settled = finish.complete(connection.direct, claim.id, claim.attempt, result, evidence)
            if settled is None:
                connection.rollback()
            else:
                connection.commit()
        except LedgerUnavailable as error:
            return self._complete_after_loss(claim, context, result, evidence, error)
        return settled

    def _complete_after_loss(
        self, claim: Claim, context: RunContext, result: str | None, evidence: Evidence, error: LedgerUnavailable
    ) -> Settled | None:
        """The connection went away around the commit: see what became of it.

        A job that wrote nothing through its session has lost nothing with it, and completes on another connection.
        """

        def look_or_complete() -> Settled | None:
            with self.connections.transaction(WRITE_DEADLINE_SECONDS) as fresh:
                leases.end_backend(fresh, claim.id, claim.attempt, surely=True)
                if queries.outcome_of(fresh, claim.id, claim.attempt) is Outcome.COMPLETED:
                    return Settled(JobStatus.COMPLETED)
                if context.session_used:
                    raise EffectsLost("The connection was lost before the job's effects were committed.") from error
                return finish.complete(fresh, claim.id, claim.attempt, result, evidence)

        return self._patiently(look_or_complete, END_PATIENCE_SECONDS)

    def _conclude(self, connection: RunConnection, claim: Claim, error: BaseException) -> Settled | None:
        """Write the end of an attempt that did not complete, on a fresh connection."""
        if self.alarm is not None:
            self.alarm.disarm()
        self.lease.ending()
        outcome = classify(error, self.alarm, connection.raw)
        connection.cut()  # its effects and locks are gone before the job runs again
        if isinstance(error, FencedOut):
            self._log_end(None)
            return None
        patience = LEDGER_PATIENCE_SECONDS if isinstance(error, LedgerUnavailable) else END_PATIENCE_SECONDS
        settled = self._write_end(claim, outcome, error, self._evidence(error, traced=True), patience)
        if claim.is_limited:
            limits.pass_on(self.connections, [claim.id])
        return settled

    def _write_end(
        self,
        claim: Claim,
        outcome: Outcome,
        error: BaseException,
        evidence: Evidence,
        patience_seconds: float = END_PATIENCE_SECONDS,
    ) -> Settled | None:
        def write() -> Settled | None:
            with self.connections.transaction(WRITE_DEADLINE_SECONDS) as fresh:
                fresh.execute(_SHORT_LOCK_WAIT)
                unknown_for = (
                    queries.seconds_of_unknown_type(fresh, claim.id) if outcome is Outcome.UNKNOWN_TYPE else 0.0
                )
                judged = TimeoutError() if outcome is Outcome.TIMEOUT else error
                restarted = outcome is Outcome.LOST and leases.server_restarted(fresh, claim.id, claim.attempt)
                decision = finish.decide(outcome, claim, self.retry, judged, unknown_for, server_restarted=restarted)
                return finish.settle(fresh, claim.id, claim.attempt, outcome, decision, evidence)

        settled = self._patiently(write, patience_seconds)
        if settled is not None:
            push_quietly(self.connections, settled.wakes)
        self._log_end(settled, outcome, evidence)
        return settled

    def _write_stuck(self, reason: Interrupt) -> None:
        """Called by the lease's thread for a job that reacts to nothing, before the process exits.

        Until then it goes on; so its slots are left to the chore.
        """
        if self.claim is not None:
            self._write_end(self.claim, _STUCK[type(reason)], reason, self._evidence(reason))

    def _log_as(self, claim: Claim) -> LoggedRun:
        """From here to the end of the run, each log line says whose it is."""
        job_id = str(claim.id)
        self.logged = LoggedRun(
            job_id, claim.job_type, claim.attempt, claim.queue, self.tail, whole_process=is_work_horse(job_id)
        )
        return self.logged

    def _log_end(
        self, settled: Settled | None, outcome: Outcome = Outcome.COMPLETED, evidence: Evidence | None = None
    ) -> None:
        """One line for the end of a run. RQ shows the traceback of a job that failed for good, and of no other."""
        if self.logged is not None:
            self.logged.ended(settled.status if settled is not None else "fenced_out")
        if not log.isEnabledFor(logging.INFO):
            return
        if settled is None:
            log.info("Fenced out: another attempt ends this job")
        elif settled.status is JobStatus.COMPLETED or evidence is None:
            log.info("Completed")
        elif settled.status is JobStatus.QUEUED:
            log.info("Handed back")
        elif settled.status is JobStatus.FAILED:
            log.info("Failed", outcome=outcome.value, error_type=evidence.error_type, error=evidence.error_message)
        elif settled.status is JobStatus.CANCELED:
            log.info("Canceled", why=evidence.error_message)
        else:
            log.info(
                "Will run again",
                outcome=outcome.value,
                wait_seconds=settled.wait_seconds,
                error_type=evidence.error_type,
                exception=evidence.traceback,
            )

    def _evidence(self, error: BaseException | None = None, *, traced: bool = False) -> Evidence:
        return evidence_of(error, self.lease.progress, self.tail.text(), traced=traced)

    def _patiently(self, step: Callable[[], T], patience_seconds: float) -> T:
        """Do a step of the ledger, again and again while Postgres is away, has no room, or the row is locked.

        Every step is guarded by the status and the fence, so doing it twice is harmless. A claim whose answer was lost
        finds itself a duplicate the second time; the reaper then ends the attempt that nobody runs.

        Raises:
            LedgerUnavailable: that was so until the patience ran out. The reconciler knows it by this name, and holds
                the lost wake-up against nobody.
        """
        deadline, pause = time.monotonic() + patience_seconds, 0.1
        while True:
            try:
                return step()
            except (LedgerUnavailable, DBAPIError, psycopg2.Error) as error:
                away = isinstance(error, LedgerUnavailable)
                if not (away or is_connection_loss(error) or sql_state(error) in (*TRY_AGAIN, *NO_ROOM)):
                    raise
                if time.monotonic() + pause > deadline:
                    if away:
                        raise
                    said = f"Postgres could not do it within {patience_seconds:g} s: {_first_line(error)}"
                    raise LedgerUnavailable(said) from error
                log.warning("The ledger is away or locked: trying again", job_id=str(self.job_id), error=str(error))
            time.sleep(pause)
            pause = min(pause * 2, 2.0)


def _first_line(error: BaseException) -> str:
    """What the database says is wrong, without its hints."""
    return str(getattr(error, "orig", error)).strip().split("\n")[0]


def _encode_result(result: Any) -> str | None:
    if result is None:
        return None
    try:
        plain = to_jsonable_python(result)
    except PydanticSerializationError as error:
        raise PayloadError(f"The result cannot be written as JSON: {error}") from error
    return to_json(plain, "the result", MAX_RESULT_BYTES)


def _in_words(settled: Settled | None) -> str:
    if settled is None:
        return "fenced out: another attempt ends this job"
    if settled.status is JobStatus.QUEUED:
        return "handed back: the worker stops, another one runs it"
    if settled.status is JobStatus.SCHEDULED:
        return f"scheduled: runs again in {settled.wait_seconds:.1f} s"
    return settled.status.value
