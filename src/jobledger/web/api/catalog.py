"""The job classes that the API may create; the others do not exist for it."""

from jobledger.errors import UnknownJobType
from jobledger.job import BaseJob
from jobledger.registry import registry


def dispatchable_jobs() -> dict[str, type[BaseJob]]:
    """The loaded classes with `api_dispatchable = True`, by job type, in its order."""
    return {job_class.job_type: job_class for job_class in registry if job_class.api_dispatchable}


def find_job(job_type: str) -> type[BaseJob]:
    """The class of a type.

    Raises:
        UnknownJobType: there is none, or it is not for the API; the message says the same for both.
    """
    jobs = dispatchable_jobs()
    if job_type not in jobs:
        raise UnknownJobType(f"There is no job {job_type[:200]!r}. Available: {', '.join(jobs) or 'none'}.")
    return jobs[job_type]
