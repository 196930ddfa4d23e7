"""The run of one delivery: claim, perform, end. RQ calls `run_job` in the work-horse that it has forked."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import UUID, uuid4

from rq import get_current_job

from jobledger import process
from jobledger.connections.default import Connections, default_connections
from jobledger.domain.records import Claim, Runner
from jobledger.domain.status import JobStatus
from jobledger.ledger import moves
from jobledger.lifecycle import limits
from jobledger.lifecycle.finish import Settled
from jobledger.observe.log import get_logger, set_up_logging
from jobledger.observe.log_run import LogTail
from jobledger.worker.attempt import Attempt
from jobledger.worker.completer import LEDGER_PATIENCE_SECONDS, Completer, patiently
from jobledger.worker.connection import RunConnection
from jobledger.worker.interrupts import NUMBER, interrupter_of_this_thread
from jobledger.worker.keeping import Keeping, keeping_of
from jobledger.worker.leases import Lease
from jobledger.worker.notes import AttemptNote
from jobledger.worker.outcome import is_unprintable
from jobledger.worker.spare import spare_of_this_worker
from jobledger.worker.stop import NO_WORKER
from jobledger.worker.strangers import hand_on

log: Final = get_logger(__name__)


NOTHING_TO_DO: Final = "nothing to do: a duplicate delivery, or the job was canceled, held or has expired"


class JobFailed(Exception):
    """The error that RQ gets for a job whose own error cannot be printed."""


def run_job(job_id: str) -> str:
    """Run one delivery of a job; RQ calls this for every wake-up.

    Args:
        job_id: id of the row.

    Returns:
        The end, in a few words, for RQ's tools.

    Raises:
        BaseException: the error of a job that failed for good, so that RQ's tools show it as failed; or
            LedgerUnavailable, if Postgres stayed away, full or locked.
    """
    connections = default_connections()
    if not logging.getLogger().handlers:  # a worker without our configuration, or any configuration
        set_up_logging(connections.settings)
    keeping = keeping_of(connections)
    isolated = is_work_horse(job_id)
    if isolated:
        process.die_with_parent(None, signal.SIGKILL)  # it has its own process group, so it would live on
    if isolated or get_current_job() is not None:
        keeping.start()
    if isolated:
        keeping.stop.listen()
    if isolated or get_current_job() is not None:
        _prepare_forks(isolated=isolated)
    return Delivery(connections, keeping, UUID(job_id), isolated=isolated).run()


def is_work_horse(job_id: str) -> bool:
    """Whether this process was made for this job alone (RQ's fork sets the variable, rq 3.0 worker_classes.py:65)."""
    return os.environ.get("RQ_JOB_ID") == job_id


class Delivery:
    """One delivery of a job to a process that runs nothing else.

    Args:
        connections: of this process.
        keeping: of its leases.
        job_id: of the row.
        isolated: the process was made for this delivery.
    """

    def __init__(self, connections: Connections, keeping: Keeping, job_id: UUID, *, isolated: bool) -> None:
        self._connections = connections
        self._keeping = keeping
        self._job_id = job_id
        self._isolated = isolated
        self._tail = LogTail()
        self._runner = self._this_runner()
        self._claim_lost = False

    def run(self) -> str:
        """Run the steps, in order."""
        with self._keeping.lease_of(self._job_id, self._tail) as lease:
            connection, claim = patiently(lambda: self._claim(lease), LEDGER_PATIENCE_SECONDS, str(self._job_id))
            end = NOTHING_TO_DO if claim is None else self._perform(lease, connection, claim)
        connection.release()
        if claim is None:
            return hand_on(self._connections, self._job_id) or end
        return end

    def warm_up(self, claim: Claim) -> None:
        """Run the steps for a row that does not exist: see `worker.warm_up`."""
        with self._keeping.lease_of(self._job_id, self._tail) as lease:
            connection, _ = self._claim(lease)
            attempt = self._attempt(lease, connection, claim)
            with attempt.logged:
                Completer(self._connections).complete(attempt, attempt.perform())
        connection.release()

    def _claim(self, lease: Lease) -> tuple[RunConnection, Claim | None]:
        self._keeping.require_keeper()
        connection = RunConnection(self._connections, spare_of_this_worker())
        lease_seconds = self._connections.settings.lease_seconds
        lease.claiming(connection)
        try:
            connection.autocommit()
            direct, runner = connection.direct, replace(self._runner, backend=connection.backend)
            claim = moves.claim(direct, self._job_id, runner, lease_seconds)
            if claim is None:
                claim = limits.claim(self._connections, direct, self._job_id, runner, lease_seconds)
            if claim is None and self._claim_lost:
                claim = moves.claim_again(direct, self._job_id, runner, lease_seconds)
        except BaseException:
            self._claim_lost = True
            lease.claiming(None)
            connection.cut()
            raise
        return connection, claim

    def _attempt(self, lease: Lease, connection: RunConnection, claim: Claim) -> Attempt:
        lease.claimed(
            AttemptNote.of(claim, self._runner, os.getppid(), self._connections.settings.lease_seconds, alone=True),
            connection,
        )
        return Attempt(
            self._connections,
            claim,
            lease,
            interrupter_of_this_thread(claim.timeout_seconds),
            self._tail,
            connection,
            alone=True,
            whole_process=self._isolated,
        )

    def _perform(self, lease: Lease, connection: RunConnection, claim: Claim) -> str:
        attempt = self._attempt(lease, connection, claim)
        completer = Completer(self._connections)
        with attempt.logged:
            try:
                settled = completer.complete(attempt, attempt.perform())
            except BaseException as error:  # everything that a job raises is an outcome, also SystemExit
                settled = completer.conclude(attempt, error)
                if settled is not None and settled.status is JobStatus.FAILED:
                    unprintable = _if_unprintable(attempt)
                    if unprintable is not None:
                        raise unprintable from None
                    raise
            return _in_words(settled)

    def _this_runner(self) -> Runner:
        job = get_current_job()
        return Runner(
            worker=(job.worker_name if job is not None else None) or NO_WORKER,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self._connections.settings.code_version,
            isolated=self._isolated,
            token=uuid4(),
        )


def _if_unprintable(attempt: Attempt) -> JobFailed | None:
    """The replacement for an error that RQ could not print either."""
    said = attempt.evidence
    return JobFailed(f"{said.error_type}: {said.error_message}") if said is not None and is_unprintable(said) else None


def _in_words(settled: Settled | None) -> str:
    if settled is None:
        return "fenced out: another attempt ends this job"
    if settled.status is JobStatus.QUEUED:
        return "handed back: the worker stops, another one runs it"
    if settled.status is JobStatus.SCHEDULED:
        return f"scheduled: runs again in {settled.wait_seconds:.1f} s"
    return settled.status.value


class _Forks:
    """Facts about the process that runs jobs, for the children that a job forks.

    Attributes:
        pid: of the process; None before its first job.
        isolated: the process was made for one job.
        owner: the object whose methods handle the signals that stop the process.
    """

    pid: int | None = None
    isolated = False
    owner: object = None


class _Fork(threading.local):
    """A fork that a thread has begun: whether it is the main one, and its signal mask before."""

    in_main_thread = False
    mask: Iterable[int] = ()


_forks: Final = _Forks()
_fork: Final = _Fork()
_STOPPING: Final = ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler))


def _prepare_forks(*, isolated: bool) -> None:
    _forks.pid, _forks.isolated = os.getpid(), isolated
    _forks.owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)


def _before_fork() -> None:
    """Block SIGTERM: in its first moments, the child still has the handler of its parent."""
    if _forks.pid == os.getpid():
        _fork.in_main_thread = threading.current_thread() is threading.main_thread()
        _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _after_fork_in_parent() -> None:
    if _forks.pid == os.getpid():
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _after_fork_in_child() -> None:
    """Let SIGTERM end a child of a job, unless the job has a handler of its own; and let the child die with the
    work-horse, but not the child's own children with it: a process may fork twice to outlive its parent.

    The kernel takes the forking thread for the parent: only the main thread lives as long as the process.
    """
    if _forks.pid != os.getppid():
        return
    with suppress(ValueError):  # forked in another thread
        for number, default in _STOPPING:
            if _forks.owner is not None and getattr(signal.getsignal(number), "__self__", None) is _forks.owner:
                signal.signal(number, default)
        signal.signal(NUMBER, signal.SIG_DFL)
    if _forks.isolated and _fork.in_main_thread:
        process.die_with_parent(None, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
