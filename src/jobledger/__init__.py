"""Background jobs on Redis Queue, with a ledger in Postgres that is always right."""

import importlib
from typing import TYPE_CHECKING, Any

from jobledger.connections.default import Connections, configure, default_connections
from jobledger.domain.endings import Cancel, FencedOut, GiveUp, JobCanceled, Snooze
from jobledger.domain.limits import Limit, Rate
from jobledger.domain.retry import Retry
from jobledger.domain.status import JobStatus, Outcome, Reason
from jobledger.domain.tick import Tick
from jobledger.domain.unique import Unique
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
from jobledger.job.definition import BaseJob, Failure
from jobledger.job.handle import JobHandle
from jobledger.settings import Settings

if TYPE_CHECKING:
    from jobledger.schedules import schedule

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


def __getattr__(name: str) -> Any:
    """`schedule` loads APScheduler, which a process without schedules does not need."""
    if name == "schedule":
        return importlib.import_module("jobledger.schedules").schedule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
