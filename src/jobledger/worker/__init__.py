"""The code that workers run. `jobledger.worker.run_job` is the callable of every wake-up; its name never changes."""

from jobledger.worker.redis import ResilientRedis
from jobledger.worker.work_horse import run_job

__all__ = ["ResilientRedis", "run_job"]
