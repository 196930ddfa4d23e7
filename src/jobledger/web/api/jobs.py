"""Create jobs and follow them. The API knows only classes with `api_dispatchable`."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header, HTTPException, Response
from pydantic import ValidationError

from jobledger.connections.default import Connections
from jobledger.dispatch.accept import dispatch
from jobledger.dispatch.admission import Request
from jobledger.domain.options import LONGEST_KEY
from jobledger.errors import DispatchRefused, JobNotFound, OptionError, UnknownJobType
from jobledger.job.definition import BaseJob
from jobledger.ledger import queries
from jobledger.registry import registry
from jobledger.web.api.body import parse_json, read_body
from jobledger.web.api.schemas import Created, CreateJob, ErrorBody, JobState
from jobledger.web.errors import explain, status_of
from jobledger.web.threads import BoundedThreads

MAX_JOBS: Final = 1000
KEY_SCOPE: Final = "api"
REPLAYED: Final = "Idempotency-Replayed"
"""Header of a response to a repeated request, which created nothing."""
READ_SECONDS: Final = 1.5

ANSWER_SECONDS: Final = 0.2
"""A dispatch gives up this long before its request, so that the response has the reason and the thread is free."""
SHORTEST_SECONDS: Final = 0.1

_OPTIONS: Final = ("queue", "priority", "expires_in", "timeout", "max_attempts", "delay", "after", "on_parent_failure")

_AWAY: Final[dict[int | str, dict[str, Any]]] = {503: {"model": ErrorBody, "description": "Postgres is away."}}
_UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {404: {"model": ErrorBody, "description": "No such job."}}
_BAD_KEY: Final[dict[int | str, dict[str, Any]]] = {400: {"model": ErrorBody, "description": "The key is wrong."}}
_CONTENDED: Final[dict[int | str, dict[str, Any]]] = {
    409: {
        "model": ErrorBody,
        "description": "An equal job exists, and its class makes that an error; or another transaction dispatches an "
        "equal job and does not end: try again.",
    }
}
_WRONG: Final[dict[int | str, dict[str, Any]]] = {422: {"model": ErrorBody, "description": "The request is wrong."}}


Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A repeated request with the same key creates nothing and returns the job of the first request."
        f" 1 to {LONGEST_KEY} printable characters; not for a list.",
    ),
]


def jobs_router(connections: Connections, threads: BoundedThreads) -> APIRouter:
    """The routes. Their work blocks, so it runs in the threads."""
    router = APIRouter(tags=["jobs"], responses=_AWAY)

    async def create(check: Callable[[], Request | list[Request]], response: Response) -> Created | list[Created]:
        # Two steps: a request that times out while the class checks its payload must not be dispatched later.
        until = threads.deadline()
        asked = await threads.run(check, until)
        requests = asked if isinstance(asked, list) else [asked]
        accepted = await threads.run(
            lambda: dispatch(requests, into=connections, within_seconds=_seconds_until(until)), until
        )
        created = [Created(job_id=one.id, is_duplicate=one.is_duplicate) for one in accepted]
        if isinstance(asked, list):
            return created
        response.headers["Location"] = f"/job-status/{created[0].job_id}"
        if accepted[0].is_replay:
            response.headers[REPLAYED] = "true"
        return created[0]

    @router.post("/create-jobs", status_code=201, include_in_schema=False)
    @router.post("/create-jobs/", status_code=201, responses=_BAD_KEY | _UNKNOWN | _CONTENDED | _WRONG)
    async def create_jobs(
        body: Annotated[bytes, Depends(read_body)], response: Response, key: Key = None
    ) -> Created | list[Created]:
        """Create a job; or, with a list, several jobs, all or none."""
        return await create(lambda: _checked(parse_json(body), _checked_key(key)), response)

    @router.post("/create-jobs/{job_type:path}", status_code=201, include_in_schema=False)
    async def create_job(
        job_type: str, body: Annotated[bytes, Depends(read_body)], response: Response, key: Key = None
    ) -> Created | list[Created]:
        """Create a job, with its type in the path; so /docs has a form for each type."""
        return await create(lambda: _checked_one(_with_type(parse_json(body), job_type), _checked_key(key)), response)

    @router.get("/job-status/{job_id}", responses=_UNKNOWN | _WRONG)
    async def job_status(job_id: UUID) -> JobState:
        """The status of a job, with its result or error and every attempt."""
        return await threads.run(lambda: _read(connections, job_id))

    return router


def _seconds_until(until: float) -> float:
    """Longest duration of a dispatch that must end in time for the response."""
    return max(until - time.monotonic() - ANSWER_SECONDS, SHORTEST_SECONDS)


def _checked_key(key: str | None) -> str | None:
    """The key of a request.

    Raises:
        HTTPException: 400, it is empty, too long, or not printable.
    """
    if key is not None and not (1 <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
        raise HTTPException(400, f"Idempotency-Key: say 1 to {LONGEST_KEY} printable ASCII characters.")
    return key


def _checked(body: Any, key: str | None) -> Request | list[Request]:
    if not isinstance(body, list):
        return _checked_one(body, key)
    if key is not None:
        raise OptionError("An Idempotency-Key is for one job: send the jobs of a list one by one, each with its own.")
    return _checked_list(body)


def _checked_list(items: list[Any]) -> list[Request]:
    if not 1 <= len(items) <= MAX_JOBS:
        raise HTTPException(422, f"The list has {len(items):,} jobs; say 1 to {MAX_JOBS:,}.")
    requests: list[Request] = []
    for number, item in enumerate(items, 1):
        try:
            requests.append(_checked_one(item))
        except DispatchRefused as error:
            where = f"Job {number} of {len(items)}, and so none was created"
            raise HTTPException(status_of(error), f"{where}: {error}") from error
    if len({request.options.after for request in requests}) > 1:
        raise OptionError("after must be the same for all jobs of a list.")
    return requests


def _checked_one(item: Any, key: str | None = None) -> Request:
    """The request of an item, checked by the job's class.

    Raises:
        DispatchRefused: a value is invalid; the message names it.
    """
    try:
        asked = CreateJob.model_validate(item)
    except ValidationError as error:
        raise OptionError(explain(error.errors())) from None
    options = {name: getattr(asked, name) for name in _OPTIONS}
    if asked.title is not None:
        # A title is a template in a job class; from outside it is plain text.
        options["title"] = asked.title.replace("{", "{{").replace("}", "}}")
    if key is not None:
        options |= {"idempotency_key": key, "idempotency_scope": KEY_SCOPE}
    return find_job(asked.job).set(**options).request(asked.payload)


def _with_type(body: Any, job_type: str) -> Any:
    if not isinstance(body, dict):
        return body
    if body.get("job", job_type) != job_type:
        raise OptionError(f"job: the path says {job_type!r} and the body something else.")
    return {**body, "job": job_type}


def _read(connections: Connections, job_id: UUID) -> JobState:
    with connections.transaction(READ_SECONDS) as connection:
        row = queries.job(connection, job_id)
        attempts = queries.attempts(connection, job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id}: it was never created, or its row was pruned.")
    return JobState.of(row, attempts)


def dispatchable_jobs() -> dict[str, type[BaseJob]]:
    """The loaded classes with `api_dispatchable = True`, by job type, in its order."""
    return {job_class.job_type: job_class for job_class in registry if job_class.api_dispatchable}


def find_job(job_type: str) -> type[BaseJob]:
    """The class of a type.

    Raises:
        UnknownJobType: there is none, or it is not for the API; the message does not tell which.
    """
    jobs = dispatchable_jobs()
    if job_type not in jobs:
        raise UnknownJobType(f"There is no job {job_type[:200]!r}. Available: {', '.join(jobs) or 'none'}.")
    return jobs[job_type]
