"""The notes on the board: of a process about its attempt, and of the keeper in answer. See `board`."""

import json
import time
from dataclasses import dataclass, replace
from typing import Any, Self
from uuid import UUID

from jobledger.domain.records import Claim, Runner
from jobledger.ledger.leases import Progress


def _encoded(note: Any) -> bytes:
    return json.dumps({name: getattr(note, name) for name in note.__slots__}, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class AttemptNote:
    """A process's note about a running attempt. Times are on the monotonic clock, which a host's processes share.

    Attributes:
        pid: of the process.
        parent: pid of the worker, which reports the death of the process while it lives itself.
        worker: RQ's name of the worker.
        isolated: the process was made for this attempt.
        alone: the process runs nothing else, so that it may be killed.
        lease_seconds: the length of the lease.
        began_at: time of the claim.
        deadline: end of the job's time; None until the work has begun.
        ending_at: since when its end is being written; None while it works.
        stop_by: until when it may go on, if its process was told to stop; otherwise None.
        progress: done, total and a remark, as the job reports them.
    """

    id: str
    attempt: int
    job_type: str
    pid: int
    parent: int
    worker: str
    isolated: bool
    alone: bool
    lease_seconds: float
    began_at: float
    deadline: float | None = None
    ending_at: float | None = None
    stop_by: float | None = None
    progress: tuple[int | None, int | None, str | None] = (None, None, None)

    @classmethod
    def of(cls, claim: Claim, runner: Runner, parent: int, lease_seconds: float, *, alone: bool) -> Self:
        """The note about a claim that this process has just made."""
        return cls(
            id=str(claim.id),
            attempt=claim.attempt,
            job_type=claim.job_type,
            pid=runner.pid,
            parent=parent,
            worker=runner.worker,
            isolated=runner.isolated,
            alone=alone,
            lease_seconds=lease_seconds,
            began_at=time.monotonic(),
        )

    @property
    def job_id(self) -> UUID:
        """The ledger's id of the job."""
        return UUID(self.id)

    def to_bytes(self) -> bytes:
        """As the board has it."""
        return _encoded(self)

    @classmethod
    def from_bytes(cls, text: bytes) -> Self:
        """As it was written."""
        return cls(**json.loads(text))

    def but(self, **changed: Any) -> Self:
        """The same with other values."""
        return replace(self, **changed)

    def progress_with(self, log_tail: str | None) -> Progress:
        """The progress to write to the ledger."""
        return Progress(*self.progress, log_tail)


@dataclass(frozen=True, slots=True)
class Answer:
    """The keeper's note about an attempt.

    Attributes:
        id, attempt: identify the attempt.
        fenced: the attempt was fenced out.
        cancel_reason: the person who has canceled the job, and why.
        canceled_at: when the keeper learnt of that.
        stop_requested_at: when its worker was told to stop.
        heard_at: time of the ledger's last answer.
    """

    id: str
    attempt: int
    fenced: bool = False
    cancel_reason: str | None = None
    canceled_at: float | None = None
    stop_requested_at: float | None = None
    heard_at: float = 0.0

    def to_bytes(self) -> bytes:
        """As the board has it."""
        return _encoded(self)

    @classmethod
    def from_bytes(cls, text: bytes) -> Self:
        """As it was written."""
        return cls(**json.loads(text))

    def but(self, **changed: Any) -> Self:
        """The same with other values."""
        return replace(self, **changed)
