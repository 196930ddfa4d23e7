"""Every exception that jobledger raises at its callers.

JobledgerError
├── ConfigurationError         settings or definitions are wrong; nothing was started
│   ├── JobDefinitionError     a job class cannot work as it is written
│   └── ScheduleError          a schedule cannot work as it is written
├── DispatchRefused            nothing was written
│   ├── PayloadError           the payload does not fit the job
│   ├── OptionError            an option (queue, delay, …) does not make sense
│   ├── UnknownJobType         no class of that type is loaded here
│   ├── ParentNotFound         `after=` names a job that is not in the ledger
│   ├── JobRefused             the job itself refuses this payload
│   ├── AlreadyDispatched      an equal job of a unique class is there already
│   ├── IdempotencyConflict    the key was used for another payload
│   └── DispatchContended      another transaction dispatches an equal job, and does not end
├── LedgerUnavailable          Postgres is away, or did not answer in time
├── JobNotFound                no such row (any more)
├── SchemaLocked               a migration could not lock a table in time
├── ScheduleNotFound           no such schedule, or it is not defined any more
└── WaitTimeout                `handle.wait()` ran out of time; also a TimeoutError
"""

from uuid import UUID


class JobledgerError(Exception):
    """Root of all errors of this package."""


class ConfigurationError(JobledgerError):
    """Settings or definitions are wrong; nothing was started."""


class JobDefinitionError(ConfigurationError):
    """A job class cannot work as it is written."""


class ScheduleError(ConfigurationError):
    """A schedule cannot work as it is written."""


class DispatchRefused(JobledgerError):
    """A dispatch was refused; nothing was written."""


class PayloadError(DispatchRefused):
    """The payload does not fit the job."""


class OptionError(DispatchRefused):
    """An option of a dispatch (queue, delay, timeout, …) does not make sense."""


class UnknownJobType(DispatchRefused):
    """No job class of that type is loaded in this process."""


class ParentNotFound(DispatchRefused):
    """`after=` names a job that is not in the ledger (never dispatched, rolled back, or pruned)."""


class JobRefused(DispatchRefused):
    """The job class itself refuses this payload: raised in `BaseJob.check_payload`."""


class AlreadyDispatched(DispatchRefused):
    """An equal job of a unique class is there already, and the class says `on_conflict="error"`.

    Attributes:
        job_id: id of that job; None if both jobs are in this dispatch.
    """

    def __init__(self, message: str, job_id: UUID | None) -> None:
        super().__init__(message)
        self.job_id = job_id


class IdempotencyConflict(DispatchRefused):
    """The idempotency key was used before, for another job type or payload.

    Attributes:
        job_id: id of the job that was dispatched with this key.
    """

    def __init__(self, message: str, job_id: UUID) -> None:
        super().__init__(message)
        self.job_id = job_id


class DispatchContended(DispatchRefused):
    """Another transaction dispatches an equal job and did not end in time: try again."""


class LedgerUnavailable(JobledgerError):
    """Postgres is away, or did not answer in time. Whether the last statement took effect is unknown."""


class SchemaLocked(JobledgerError):
    """A migration could not lock a table in time. Its finished steps stay; the next migration goes on from there."""


class JobNotFound(JobledgerError):
    """The ledger has no such job: never dispatched, rolled back, or pruned."""


class ScheduleNotFound(JobledgerError):
    """The ledger has no such schedule, or no running scheduler defines it any more."""


class WaitTimeout(JobledgerError, TimeoutError):
    """The job did not end within the time given to `wait()`."""
