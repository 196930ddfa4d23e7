"""What a worker runs. `jobledger.worker.run_job` is the callable of every wake-up; its name never changes."""

from jobledger.worker.patient_redis import ResilientRedis
from jobledger.worker.run import run_job

__all__ = ["ResilientRedis", "run_job"]
