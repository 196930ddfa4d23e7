"""One claimed attempt: load the class, perform the work, keep the evidence. Shared by all kinds of workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobledger.connections.default import Connections
from jobledger.domain.endings import Interrupt
from jobledger.domain.payload import encode_result
from jobledger.domain.records import Claim, Evidence
from jobledger.domain.retry import Retry
from jobledger.errors import ConfigurationError, UnknownJobType
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import leases
from jobledger.observe.log_run import LoggedRun, LogTail
from jobledger.registry import load_job_modules, registry
from jobledger.worker.connection import RunConnection
from jobledger.worker.context import RunContext
from jobledger.worker.interrupts import Interrupter
from jobledger.worker.leases import Lease
from jobledger.worker.outcome import evidence_of


class Attempt:
    """From the claim to the result, or the error.

    Args:
        connections: of this process.
        claim: the fence.
        lease: of this attempt.
        interrupter: of the thread that performs it.
        tail: takes the attempt's log lines.
        connection: of the claim, if the attempt has it for itself; None to open one for the first use of a session.
        alone: the process runs nothing else.
        whole_process: the process was made for this attempt, and ends with it.

    Attributes:
        retry: the policy of the job's class, once that is loaded.
        is_loaded: whether the class was found.
        context: the job's view of its attempt; None before the class is loaded.
        evidence: the error and progress to be stored, taken while the job could be interrupted.
        logged: names the attempt in log lines.
    """

    def __init__(
        self,
        connections: Connections,
        claim: Claim,
        lease: Lease,
        interrupter: Interrupter,
        tail: LogTail,
        connection: RunConnection | None,
        *,
        alone: bool,
        whole_process: bool,
    ) -> None:
        self.connections = connections
        self.claim = claim
        self.lease = lease
        self.interrupter = interrupter
        self.tail = tail
        self.connection = connection
        self.alone = alone
        self.retry = Retry()
        self.is_loaded = False
        self.context: RunContext | None = None
        self.evidence: Evidence | None = None
        self.logged = LoggedRun(
            str(claim.id), claim.job_type, claim.attempt, claim.queue, tail, whole_process=whole_process
        )
        self._pid = os.getpid()

    @property
    def reason(self) -> Interrupt | None:
        """The interrupt that was raised in the job, also if the job swallowed it."""
        return self.interrupter.reason

    @property
    def has_session(self) -> bool:
        """Whether the job has asked for its session, so that it may have written something."""
        return self.context is not None and self.context.session_used

    def perform(self) -> str | None:
        """Do the work, within the job's time.

        Returns:
            Its result, as JSON.

        Raises:
            BaseException: an error of the job, or an interrupt.
        """
        job_class = self._load()  # under the lease, but not in the job's own time
        self.context = RunContext(self.claim, self.tail, self._open_connection, self.interrupter, self.lease)
        with self.interrupter:
            self.lease.working(self.interrupter)
            try:
                reach(Failpoint.AFTER_CLAIM)
                with self._only_in_this_process():
                    returned = job_class.run(self.context)
                result = encode_result(returned)
                self.context.flush()
            except BaseException as error:
                self.evidence = self.evidence_of(error, traced=True)
                raise
        return result

    def evidence_of(self, error: BaseException | None = None, *, traced: bool = False) -> Evidence:
        """The evidence to store, if the attempt ends with this error."""
        progress = self.lease.progress_with(self.tail.text())
        return evidence_of(error, progress, alone=self.alone, traced=traced)

    def _load(self) -> Any:
        try:
            job_class = registry.lookup(self.claim.job_type)
        except UnknownJobType:
            job_class = self._load_modules_and_look_again()
        self.retry = job_class.retry
        self.is_loaded = True
        return job_class

    def _load_modules_and_look_again(self) -> Any:
        """A worker that was started without our configuration has loaded nothing yet."""
        try:
            load_job_modules(self.connections.settings.job_modules)
        except ConfigurationError as error:  # a module of another deployment that does not work here
            raise UnknownJobType(str(error)) from error
        return registry.lookup(self.claim.job_type)

    def _open_connection(self) -> RunConnection:
        """The connection of the session; opened, and noted in the ledger, when it is first asked for.

        Raises:
            FencedOut: another attempt of the job may be running.
            LedgerUnavailable: Postgres is away.
        """
        if self.connection is None:
            connection = RunConnection(self.connections, None)
            connection.autocommit()
            if not leases.note_backend(connection.direct, self.claim.id, self.claim.attempt, connection.backend):
                connection.release()
                raise self.lease.fence_out()
            self.connection = connection
        return self.connection

    @contextmanager
    def _only_in_this_process(self) -> Iterator[None]:
        """End a forked child of the job that returns or raises here: it has no claim, and must touch neither the
        ledger nor the parent's sockets."""
        try:
            yield
        except SystemExit as error:
            self._leave_child(error.code if isinstance(error.code, int) else error.code is not None)
            raise
        except BaseException:
            self._leave_child(1)
            raise
        self._leave_child(0)

    def _leave_child(self, code: int) -> None:
        if os.getpid() != self._pid:
            os._exit(int(code) & 0xFF)
