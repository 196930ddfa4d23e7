"""Every error as `{"detail": "…"}`: one text for people, with the status code for programs."""

from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jobledger.errors import (
    AlreadyDispatched,
    DispatchContended,
    DispatchRefused,
    JobNotFound,
    LedgerUnavailable,
    UnknownJobType,
)
from jobledger.observe.log import get_logger
from jobledger.web.threads import TookTooLong

log: Final = get_logger(__name__)

RETRY_AFTER_SECONDS: Final = "2"


def install(app: FastAPI) -> None:
    """Give the app its error handlers."""
    app.add_exception_handler(DispatchRefused, _refused)
    app.add_exception_handler(JobNotFound, _not_found)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(LedgerUnavailable, _unavailable)
    app.add_exception_handler(TookTooLong, _unavailable)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _answer(status_code: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    # The request may contain a lone surrogate, which JSON can express and UTF-8 cannot.
    speakable = detail.encode("utf-8", "replace").decode()
    return JSONResponse({"detail": speakable}, status_code, headers)


def status_of(refusal: DispatchRefused) -> int:
    """The status code of a refused dispatch."""
    match refusal:
        case UnknownJobType():
            return 404
        case AlreadyDispatched() | DispatchContended():
            return 409
        case _:  # also a reused key, as in the draft of the Idempotency-Key header
            return 422


def explain(problems: Iterable[Any]) -> str:
    """Name each wrong field, from pydantic's errors."""
    texts = []
    for item in problems:
        where = ".".join(str(part) for part in item["loc"] if part != "path") or "body"
        texts.append(f"{where}: {item['msg']}")
    return "; ".join(texts[:10])


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, DispatchRefused)
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if isinstance(error, DispatchContended) else None
    return _answer(status_of(error), str(error), headers)


def _not_found(_: Request, error: Exception) -> Response:
    return _answer(404, str(error))


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(422, explain(error.errors()))


def _unavailable(request: Request, error: Exception) -> Response:
    # The reason names hosts and roles, so only the log has it.
    log.warning("Postgres is away", path=request.url.path, error=str(error) or type(error).__name__)
    detail = "Postgres is away or did not answer in time."
    if request.method == "POST":
        detail += " It is not known whether anything was accepted."
        if "Idempotency-Key" in request.headers:
            detail += " Sent again with the same Idempotency-Key, it is accepted once."
    return _answer(503, detail, {"Retry-After": RETRY_AFTER_SECONDS})


def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # the client is gone


def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, error.detail, dict(error.headers or {}))


def _unexpected(_request: Request, _error: Exception) -> Response:
    return _answer(500, "Internal error; the server's log has the reason.")  # uvicorn logs it
