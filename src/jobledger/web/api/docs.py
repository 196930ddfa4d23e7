"""`/docs`: Swagger UI, all of it served from here."""

from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from jobledger.web.api.catalog import dispatchable_jobs
from jobledger.web.api.openapi import build_document

_STATIC: Final = Path(__file__).resolve().parent.parent / "static"

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the style sheet's icons
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def add_docs(app: FastAPI) -> None:
    """Give an app its document and the page that shows it; call this after the routes were added."""
    document: dict[str, Any] = build_document(app, dispatchable_jobs())
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    @router.get("/docs")
    async def docs() -> FileResponse:
        return FileResponse(
            _STATIC / "docs.html", headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        )

    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC))
