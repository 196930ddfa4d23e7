"""A running job's view of its attempt: its id, its session, its log, its progress."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from jobledger.dispatch.after_commit import AfterCommit, after_commit_of
from jobledger.domain.payload import storable
from jobledger.domain.records import Claim
from jobledger.domain.tick import Tick
from jobledger.ledger import ticks
from jobledger.observe.log import get_job_logger
from jobledger.observe.log_run import LogTail
from jobledger.worker.connection import RunConnection
from jobledger.worker.interrupts import Interrupter
from jobledger.worker.leases import Lease

LARGEST_PROGRESS: Final = 2**63 - 1
LONGEST_LIMIT_MILLISECONDS: Final = 2**31 - 1  # the largest timeout of Postgres


@dataclass(slots=True)
class RunContext:
    """A job's view of its running attempt."""

    claim: Claim
    _tail: LogTail
    _open: Callable[[], RunConnection]
    _interrupter: Interrupter
    _lease: Lease
    _job_id: UUID | None = None
    _payload: dict[str, Any] | None = None
    _log: structlog.stdlib.BoundLogger | None = None
    _session: Session | None = None
    _settings: dict[str, Any] | None = None
    _after_commit: AfterCommit | None = None
    _tick: Tick | None = None

    def on_behalf_of(self, job_id: UUID, payload: dict[str, Any]) -> "RunContext":
        """The view for the `on_failed` of another job."""
        return replace(self, _job_id=job_id, _payload=payload)

    @property
    def job_id(self) -> UUID:
        """The ledger's id of the job."""
        return self._job_id or self.claim.id

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.claim.attempt

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, in the form of its JSON."""
        return self.claim.payload if self._payload is None else self._payload

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger whose lines are also kept with the attempt."""
        if self._log is None:
            bound = {"job_id": str(self.claim.id), "job_type": self.claim.job_type, "attempt": self.claim.attempt}
            self._log = get_job_logger(self._tail, **bound)
        return self._log

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._lease.stopping

    def check(self) -> None:
        """Raise `JobCanceled` or `FencedOut`, if this attempt is to end."""
        self._lease.check()

    @property
    def tick(self) -> Tick | None:
        """The tick that dispatched this job, looked up at the first use; None if no schedule did."""
        if self._tick is None and self.claim.fire_at is not None:
            row = ticks.of_job(self._open().direct, self.claim.id)
            self._tick = row.as_tick() if row is not None else None
        return self._tick

    @property
    def session(self) -> Session:
        """A session in the transaction that the job's finishing statement will commit.

        Its `commit()` and `rollback()` end a savepoint only: the job's writes are kept if and only if the job
        completes. A statement or a lock wait ends when the job's time is up.
        """
        if self._session is None:
            connection = self._open().for_session()
            left = min(max(1, int(self._interrupter.left_seconds * 1000)), LONGEST_LIMIT_MILLISECONDS)
            self._settings = connection.execute(_BEGIN, {"milliseconds": str(left)}).one()._asdict()
            self._session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
            self._after_commit = after_commit_of(self._session, until_commit=False)
        return self._session

    @property
    def session_used(self) -> bool:
        """Whether the job has asked for its session, so that it may have written something."""
        return self._session is not None

    def report(self, done: int | None, total: int | None, note: str | None) -> None:
        """Report progress, which is written within a second, outside of the job's transaction.

        Raises:
            TypeError: a number is not whole, or the note is not text.
            ValueError: a number is too large for the ledger.
        """
        for number in (done, total):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                raise TypeError(f"progress({number!r}): give whole numbers.")
            if number is not None and abs(number) > LARGEST_PROGRESS:
                raise ValueError(f"progress({number}): at most {LARGEST_PROGRESS}.")
        if note is not None and not isinstance(note, str):
            raise TypeError(f"progress(note={note!r}): give a text.")
        self._lease.report(done, total, storable(note[:500]) if note is not None else None)

    def flush(self) -> None:
        """Send the pending changes of the session to the database."""
        if self._session is not None:
            self._session.commit()  # its savepoint; see `session`

    def restore_session(self) -> None:
        """Reset the job's settings of the transaction: they must not apply to the finishing statement, which may
        have to wait longer for a lock."""
        if self._settings is not None:
            self._open().for_session().execute(_RESTORE, self._settings)

    def push(self) -> None:
        """After the commit: push the jobs that the job dispatched through its session."""
        if self._after_commit is not None:
            self._after_commit.push()


_BEGIN: Final = sa.text(
    "SELECT current_setting('search_path') AS search_path, current_setting('role') AS role,"
    " set_config('statement_timeout', :milliseconds, true), set_config('lock_timeout', :milliseconds, true),"
    " set_config('idle_in_transaction_session_timeout', '0', true),"  # a job may work long between its statements
    " CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL"  # Postgres has it from version 17 on
    " THEN set_config('transaction_timeout', '0', true) END"
)
_RESTORE: Final = sa.text(
    "SELECT set_config('role', :role, true), set_config('search_path', :search_path, true),"
    " set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
)
