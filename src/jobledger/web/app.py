"""Builds and serves the HTTP application."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from jobledger import __version__
from jobledger.connections.default import Connections
from jobledger.web import errors
from jobledger.web.api.health import health_router
from jobledger.web.api.jobs import jobs_router
from jobledger.web.api.openapi import add_docs
from jobledger.web.threads import BoundedThreads

DEADLINE_SECONDS: Final = 1.7
"""Every response is sent within 2 s, also when Postgres is frozen; a dispatch gives up by itself after 1.5 s."""

LEDGER_THREADS: Final = 12
"""With the two threads of /health, fewer than the 15 connections of the engine's pool, so that no running thread
waits for a connection."""

_DESCRIPTION: Final = (
    "Background jobs on Redis Queue, with a ledger in Postgres that is always right. "
    "An accepted job is in the ledger and will end; `/job-status/{job_id}` shows its status."
)
_TAGS: Final = [
    {"name": "jobs", "description": "Create jobs and follow them."},
    {"name": "forms", "description": "Create jobs, with a form for each job type."},
    {"name": "health", "description": "State of the service."},
]


def create_app(connections: Connections) -> FastAPI:
    """The API over these servers. Load the job modules first: classes that are loaded later have no form in /docs."""
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
        openapi_url=None,  # add_docs adds these pages
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


GRACE_SECONDS: Final = 5
"""Time for requests in flight at shutdown; none takes longer than 2 s."""


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight."""
    # uvicorn sends itself the signal again when it has stopped, which is no error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    uvicorn.run(
        app, host=host, port=port, log_config=None, timeout_graceful_shutdown=GRACE_SECONDS, server_header=False
    )


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)
