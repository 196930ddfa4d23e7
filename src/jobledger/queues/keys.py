"""How RQ names what it keeps in Redis (rq 3.0), as far as we read it ourselves.

RQ's own readers clean up what they look at, and call callbacks while they do; ours are single commands.
"""

from typing import Final

RUN_JOB: Final = "jobledger.worker.run_job"
"""The one callable of all wake-ups. Its name never changes: what is in Redis outlives a deployment."""

QUEUES: Final = "rq:queues"
QUEUE_PREFIX: Final = "rq:queue:"
JOB_PREFIX: Final = "rq:job:"
WORKERS: Final = "rq:workers"  # worker_registration.py:18
WORKER_PREFIX: Final = "rq:worker:"
MOMENT_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"  # utils.py, utcformat

RESULT_TTL_SECONDS: Final = 500
FAILURE_TTL_SECONDS: Final = 86400


def list_of(queue: str) -> str:
    """The list that workers take from."""
    return f"{QUEUE_PREFIX}{queue}"


def intermediate_of(queue: str) -> str:
    """Where a worker of one queue keeps what it has taken and not begun (intermediate_queue.py:31)."""
    return f"{QUEUE_PREFIX}{queue}:intermediate"


def started_of(queue: str) -> str:
    """The set of what workers have begun: `job:execution` by the time at which it counts as abandoned."""
    return f"rq:wip:{queue}"


def finished_of(queue: str) -> str:
    """The set of jobs that RQ calls finished."""
    return f"rq:finished:{queue}"


def failed_of(queue: str) -> str:
    """The set of jobs that RQ calls failed."""
    return f"rq:failed:{queue}"


def hash_of(job_id: object) -> str:
    """The hash of a job."""
    return f"{JOB_PREFIX}{job_id}"


def results_of(job_id: object) -> str:
    """The stream of a job's results (results.py:278)."""
    return f"rq:results:{job_id}"
