"""`python -m jobledger api`: the API in a process of its own."""

import signal
import sys
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

GRACE_SECONDS: Final = 5
"""What requests in flight get at the end; none takes longer than 2 s."""


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    # uvicorn sends itself the signal again when it has stopped; that is no error then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    uvicorn.run(
        app, host=host, port=port, log_config=None, timeout_graceful_shutdown=GRACE_SECONDS, server_header=False
    )


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)
