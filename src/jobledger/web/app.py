"""Puts the HTTP side together; the only place that does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI

from jobledger import __version__
from jobledger.connections import Connections
from jobledger.web import errors
from jobledger.web.api.docs import add_docs
from jobledger.web.api.health import health_router
from jobledger.web.api.jobs import jobs_router
from jobledger.web.threads import BoundedThreads

DEADLINE_SECONDS: Final = 1.7
"""Every answer is there within 2 s, also when Postgres is frozen; a dispatch gives up after 1.5 s by itself."""

LEDGER_THREADS: Final = 12
"""With the two that look at Postgres for /health, fewer than the 15 connections of the engine's pool: a thread
that has begun never waits for a connection."""

_DESCRIPTION: Final = (
    "Background jobs on Redis Queue, with a ledger in Postgres that is always right. "
    "A job that was accepted is in the ledger, and will end; `/job-status/{job_id}` says how."
)
_TAGS: Final = [
    {"name": "jobs", "description": "Create jobs, and follow them."},
    {"name": "forms", "description": "The same, a form for each job."},
    {"name": "health", "description": "Does it work?"},
]


def create_app(connections: Connections) -> FastAPI:
    """The API over these servers. Job modules must have been loaded: what is loaded later has no form in /docs."""
    threads = BoundedThreads("ledger", LEDGER_THREADS, DEADLINE_SECONDS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        threads.close()

    app = FastAPI(
        title="jobledger",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        openapi_url=None,  # ours come from add_docs
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    errors.install(app)
    app.include_router(jobs_router(connections, threads))
    app.include_router(health_router(connections))
    add_docs(app)
    return app
