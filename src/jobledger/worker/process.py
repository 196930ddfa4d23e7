"""The process that runs a job: who it is, and that it dies with its parent."""

import os
import signal
import socket

from rq import get_current_job

from jobledger import process
from jobledger.domain.records import Runner
from jobledger.worker.stop import NO_WORKER


def is_work_horse(job_id: str) -> bool:
    """Whether this process was made for this job alone (RQ's fork sets the variable, rq 3.0 worker_classes.py:65)."""
    return os.environ.get("RQ_JOB_ID") == job_id


def die_with_parent() -> None:
    """Have the kernel kill this work-horse when its worker dies.

    RQ puts it into a process group of its own, so that it outlives a killed worker and would run on unseen.
    """
    process.die_with_parent(None, signal.SIGKILL)


def this_runner(code_version: str) -> Runner:
    """Who claims, for the attempt's row."""
    job = get_current_job()
    return Runner(
        worker=(job.worker_name if job is not None else None) or NO_WORKER,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=code_version,
    )
