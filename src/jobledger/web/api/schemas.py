"""The schemas of requests and responses."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from jobledger.domain.status import JobStatus, OnParentFailure, Outcome
from jobledger.ledger.queries import AttemptRow, JobRow
from jobledger.observe.health import Level, Schema

# `jobledger.domain.options` checks these, with better messages; here they are only described.
_Queue = Annotated[Any, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"})]
_Duration = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]})]
_Priority = Annotated[Any, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 10})]
_Attempts = Annotated[Any, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})]
_Ids = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "string", "format": "uuid"}})]

_Mode = Annotated[Any, WithJsonSchema({"type": "string", "enum": [mode.value for mode in OnParentFailure]})]


class CreateJob(BaseModel):
    """One job to create. Only `job` and `payload` are needed; other fields default to the class's values."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job: str = Field(description="The job's type.")
    payload: dict[str, Any] = Field(default_factory=dict, description="The parameters of the job.")
    queue: _Queue = Field(None, description="Queue to wait in.")
    priority: _Priority = Field(None, description="1, the highest, to 10; chooses the queue of a job that names none.")
    expires_in: _Duration = Field(
        None, description='The job fails if it does not start within this: seconds, or a text such as "6h".'
    )
    timeout: _Duration = Field(None, description='Longest duration of an attempt: seconds, or a text such as "15m".')
    max_attempts: _Attempts = Field(None, description="Attempts in all, the first one included.")
    delay: _Duration = Field(None, description='Earliest start, from now: seconds, or a text such as "5m".')
    after: _Ids = Field(None, description="Ids of jobs that must complete first; the same ones for all jobs of a list.")
    on_parent_failure: _Mode = Field(
        None, description="Fate of the job if one of those fails or is canceled: cancel it, run it, or let it wait."
    )
    title: str | None = Field(None, description="Description of the job for people.")


class Created(BaseModel):
    """An accepted job: it is in the ledger and will end."""

    job_id: UUID
    status: Literal["enqueued"] = "enqueued"
    is_duplicate: bool = Field(
        description="Nothing was created: the request was sent before, or an equal job exists; this is that job."
    )


class ErrorBody(BaseModel):
    """Any error."""

    detail: str


class JobError(BaseModel):
    """The error of an attempt; the type is null if its process died or was lost."""

    type: str | None
    message: str | None


class Attempt(BaseModel):
    """One attempt to run the job; without an outcome, it is running."""

    number: int
    outcome: Outcome | None
    started_at: datetime
    finished_at: datetime | None
    error: JobError | None
    worker: str
    host: str

    @classmethod
    def of(cls, row: AttemptRow) -> "Attempt":
        """The attempt in the ledger, without traceback and log, which are for developers."""
        failed = row.outcome not in (None, Outcome.COMPLETED, Outcome.SNOOZED, Outcome.CANCELED)
        return cls(
            number=row.number,
            outcome=row.outcome,
            started_at=row.started_at,
            finished_at=row.finished_at,
            error=JobError(type=row.error_type, message=row.error_message) if failed else None,
            worker=row.worker,
            host=row.host,
        )


class Progress(BaseModel):
    """The progress that the last attempt reported."""

    done: int | None
    total: int | None
    note: str | None

    @classmethod
    def of(cls, row: AttemptRow) -> "Progress | None":
        """None if the attempt has reported no progress."""
        if row.progress_done is None and row.progress_total is None and row.progress_note is None:
            return None
        return cls(done=row.progress_done, total=row.progress_total, note=row.progress_note)


class JobState(BaseModel):
    """A job in the ledger."""

    id: UUID
    job_type: str
    title: str | None
    queue: str
    priority: int = Field(description="1, the highest, to 10.")
    status: JobStatus
    held_by: str | None = Field(description="The pause, limit or rate that holds a queued job.")
    reason: str | None = Field(description="Reason of the failure (a word) or of the cancel.")
    cancel_requested_at: datetime | None = Field(description="Time of a request to cancel the running job.")
    cancel_reason: str | None = Field(description="Requester and reason of that request.")
    result: Any = Field(description="Result of a completed job.")
    error: JobError | None = Field(description="Error of the last attempt, if it failed.")
    progress: Progress | None
    attempts: list[Attempt]
    max_attempts: int
    created_at: datetime
    available_at: datetime = Field(description="Earliest start: the end of a delay, or of the wait before a retry.")
    expires_at: datetime | None = Field(description="A job that has not started by then fails as expired.")
    started_at: datetime | None = Field(description="Start of the last attempt.")
    finished_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(cls, row: JobRow, attempts: list[AttemptRow]) -> "JobState":
        """The state of a job, from its rows."""
        shown = [Attempt.of(one) for one in attempts]
        return cls(
            id=row.id,
            job_type=row.job_type,
            title=row.title,
            queue=row.queue,
            priority=row.priority,
            status=row.status,
            held_by=row.held_by,
            reason=row.reason,
            cancel_requested_at=row.cancel_requested_at,
            cancel_reason=row.cancel_reason,
            result=row.result,
            error=shown[-1].error if shown else None,
            progress=Progress.of(attempts[-1]) if attempts else None,
            attempts=shown,
            max_attempts=row.max_attempts,
            created_at=row.created_at,
            available_at=row.available_at,
            expires_at=row.expires_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            updated_at=row.updated_at,
        )


RedisState = Literal["ok", "refuses", "away"]


class Health(BaseModel):
    """The state of the service; a null value is unknown, because Postgres did not answer."""

    status: Level
    postgres: Literal["ok", "away"]
    redis: RedisState = Field(
        description="`refuses` if Redis answers and takes no writes. Jobs are still accepted, and start later."
    )
    schema_state: Schema | None
    schema_revision: str | None
    last_sweep_age_seconds: float | None = Field(description="Time since the last sweep of a scheduler.")
    clock_set_back_seconds: float | None = Field(
        description="Step by which Postgres's clock was set back, until it has caught up: jobs may wait longer."
    )
    last_count_age_seconds: float | None = Field(description="Time since a scheduler last counted all jobs by place.")
    last_count: dict[str, bool | int] | None = Field(
        description="Unfinished jobs by place; `drift` of them are in no place, or in two. Schedulers repair that."
    )
