"""What a running job sees: its id, its session, its log, its progress."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from jobledger.dispatch import HeldWakes, hold_wakes
from jobledger.ledger.leases import Progress
from jobledger.ledger.rows import Claim
from jobledger.observe.log import LogTail, get_job_logger
from jobledger.worker.alarm import Alarm
from jobledger.worker.connection import RunConnection
from jobledger.worker.lease import Lease


@dataclass(slots=True)
class RunContext:
    """One running attempt, as its job sees it."""

    claim: Claim
    _tail: LogTail
    _connection: RunConnection
    _alarm: Alarm
    _lease: Lease
    _job_id: UUID | None = None
    _payload: dict[str, Any] | None = None
    _log: structlog.stdlib.BoundLogger | None = None
    _session: Session | None = None
    _held: HeldWakes | None = None

    def on_behalf_of(self, job_id: UUID, payload: dict[str, Any]) -> "RunContext":
        """The same run, seen as by another job: for its `on_failed`."""
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
        """The payload, as JSON has it."""
        return self.claim.payload if self._payload is None else self._payload

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger whose lines are also kept with the attempt."""
        if self._log is None:
            bound = {"job_id": str(self.claim.id), "job_type": self.claim.job_type, "attempt": self.claim.attempt}
            self._log = get_job_logger(self._tail, **bound)
        return self._log

    @property
    def fire_at(self) -> datetime | None:
        """The fire time of the schedule that dispatched this job."""
        return self.claim.fire_at

    @property
    def session(self) -> Session:
        """A session in the transaction that the job's finishing statement will commit.

        `commit()` and `rollback()` on it end a savepoint only: what a job writes is kept if and only if the job
        completes. A statement or a lock wait ends with the time that the job has left.
        """
        if self._session is None:
            connection = self._connection.for_session()
            connection.execute(_LIMITS, {"milliseconds": str(max(1, int(self._alarm.left_seconds * 1000)))})
            self._session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
            self._held = hold_wakes(self._session, until_commit=False)
        return self._session

    @property
    def session_used(self) -> bool:
        """Whether the job has asked for its session, so that it may have written something."""
        return self._session is not None

    def report(self, done: int | None, total: int | None, note: str | None) -> None:
        """Note how far the job is; written within a second, outside of the job's transaction."""
        self._lease.report(Progress(done, total, note))

    def flush(self) -> None:
        """Send what the session still holds to the database."""
        if self._session is not None:
            self._session.commit()  # its savepoint; see `session`

    def push_held(self) -> None:
        """After the commit: push what the job dispatched through its session."""
        if self._held is not None:
            self._held.push()


_LIMITS = sa.text(
    "SELECT set_config('statement_timeout', :milliseconds, true), set_config('lock_timeout', :milliseconds, true)"
)
