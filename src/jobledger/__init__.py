"""Background jobs on Redis Queue, with a ledger in Postgres that is always right."""

from jobledger.connections import Connections, configure, default_connections
from jobledger.errors import (
    AlreadyDispatched,
    ConfigurationError,
    DispatchContended,
    DispatchRefused,
    IdempotencyConflict,
    JobDefinitionError,
    JobledgerError,
    JobNotFound,
    JobRefused,
    LedgerUnavailable,
    OptionError,
    ParentNotFound,
    PayloadError,
    ScheduleError,
    ScheduleNotFound,
    SchemaLocked,
    UnknownJobType,
    WaitTimeout,
)
from jobledger.handle import JobHandle
from jobledger.job import BaseJob, Failure
from jobledger.limits import Limit, Rate
from jobledger.retry import Retry
from jobledger.schedules import schedule
from jobledger.settings import Settings
from jobledger.signals import Cancel, GiveUp, Snooze
from jobledger.status import JobStatus, Outcome, Reason
from jobledger.tick import Tick
from jobledger.unique import Unique
from jobledger.worker.alarm import FencedOut, JobCanceled

__version__ = "0.2.0"

__all__ = [
    "AlreadyDispatched",
    "BaseJob",
    "Cancel",
    "ConfigurationError",
    "Connections",
    "DispatchContended",
    "DispatchRefused",
    "Failure",
    "FencedOut",
    "GiveUp",
    "IdempotencyConflict",
    "JobCanceled",
    "JobDefinitionError",
    "JobHandle",
    "JobNotFound",
    "JobRefused",
    "JobStatus",
    "JobledgerError",
    "LedgerUnavailable",
    "Limit",
    "OptionError",
    "Outcome",
    "ParentNotFound",
    "PayloadError",
    "Rate",
    "Reason",
    "Retry",
    "ScheduleError",
    "ScheduleNotFound",
    "SchemaLocked",
    "Settings",
    "Snooze",
    "Tick",
    "Unique",
    "UnknownJobType",
    "WaitTimeout",
    "configure",
    "default_connections",
    "schedule",
]
