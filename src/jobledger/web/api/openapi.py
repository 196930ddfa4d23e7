"""The OpenAPI document, with a typed request for each job type of the API; and `/docs`, its page.

The page is Swagger UI, served entirely from this server.
"""

import inspect
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import models_json_schema

from jobledger.domain.payload import fingerprint
from jobledger.job.definition import BaseJob
from jobledger.web.api.examples import example_of
from jobledger.web.api.jobs import MAX_JOBS, dispatchable_jobs
from jobledger.web.api.schemas import CreateJob

Json = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
_PAYLOAD: Final = "payload."
_REQUEST: Final = "request."
"""Prefix of component names, so that a user's model or job may be called Health or Created."""

_ANY_OBJECT: Final[Json] = {"type": "object", "description": "Any JSON object."}
_UNION: Final = "request"


def build_document(app: FastAPI, jobs: Mapping[str, type[BaseJob]]) -> Json:
    """The document of this app and of the jobs that `POST /create-jobs/` takes.

    Each job appears twice: as a variant of the request of `/create-jobs/`, and as a path of its own, because Swagger UI
    shows a form for each path.
    """
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    schemas: Json = document["components"]["schemas"]
    payloads, definitions = _payload_schemas(jobs)
    schemas.update({_PAYLOAD + name: one for name, one in definitions.items()})
    create: Json = document["paths"]["/create-jobs/"]["post"]
    components = _components(jobs)
    examples: Json = {}
    for job_type, job_class in jobs.items():
        form = _form(job_class, payloads[job_type])
        schemas[_REQUEST + components[job_type]] = _as_kind(form, job_type)
        example = {"payload": example_of(payloads[job_type], schemas), "queue": job_class.options.chosen_queue}
        examples[job_type] = {"description": form["description"], "value": {"job": job_type, **example}}
        operation = _operation(create, job_type, components[job_type], form, example)
        document["paths"][f"/create-jobs/{quote(job_type)}"] = {"post": operation}
    schemas[_UNION] = _union(components)
    if len(examples) > 1:
        examples["several"] = {"description": "All or none.", "value": [one["value"] for one in examples.values()]}
    one = {"$ref": _SCHEMAS + _UNION}
    several = {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_JOBS, "title": "Several"}
    create["requestBody"] = _body({"anyOf": [one, several]}, examples=examples)
    return document


def _payload_schemas(jobs: Mapping[str, type[BaseJob]]) -> tuple[dict[str, Json], Json]:
    """The schema of each job's payload, and the definitions that they refer to."""
    models = {}
    for job_type, job_class in jobs.items():
        model = job_class.payload_type.model if job_class.payload_type else None
        try:
            if model is not None:
                model.model_json_schema()
                models[job_type] = model
        except PydanticInvalidForJsonSchema:
            pass  # a user's type without a JSON schema: any object is allowed
    refs, definitions = models_json_schema(
        [(model, "validation") for model in models.values()], ref_template=_SCHEMAS + _PAYLOAD + "{model}"
    )
    found = {job_type: refs[model, "validation"] for job_type, model in models.items()}
    return {job_type: found.get(job_type, _ANY_OBJECT) for job_type in jobs}, definitions.get("$defs", {})


def _form(job_class: type[BaseJob], payload: Json) -> Json:
    """The request for one job, without its type."""
    form = CreateJob.model_json_schema()
    del form["properties"]["job"]
    for option in form["properties"].values():
        option.pop("default", None)  # null means the class's value
    form["properties"]["payload"] = payload
    form["properties"]["queue"]["default"] = job_class.options.chosen_queue
    form["properties"]["priority"]["default"] = job_class.options.priority
    form["properties"]["on_parent_failure"]["default"] = job_class.options.on_parent_failure.value
    form["properties"]["max_attempts"]["default"] = job_class.retry.max_attempts
    # Not inspect.getdoc, which would fall back to BaseJob's docstring.
    description = inspect.cleandoc(job_class.__doc__ or "")
    return {**form, "title": job_class.job_type, "description": description, "required": ["payload"]}


def _as_kind(form: Json, job_type: str) -> Json:
    """The form with the type inside, as a variant of the union."""
    properties = {"job": {"type": "string", "const": job_type, "title": "Job"}, **form["properties"]}
    return {**form, "properties": properties, "required": ["job", "payload"]}


def _union(components: Mapping[str, str]) -> Json:
    if not components:
        return {**CreateJob.model_json_schema(), "description": "No loaded job has api_dispatchable = True."}
    mapping = {job_type: _SCHEMAS + _REQUEST + name for job_type, name in components.items()}
    return {
        "oneOf": [{"$ref": ref} for ref in mapping.values()],
        "discriminator": {"propertyName": "job", "mapping": mapping},
    }


def _operation(create: Json, job_type: str, component: str, form: Json, example: Json) -> Json:
    created = {"description": "Accepted", "content": _json({"schema": {"$ref": _SCHEMAS + "Created"}})}
    return {
        "tags": ["forms"],
        "summary": form["description"].partition("\n")[0] or job_type,
        "description": form["description"],
        "operationId": f"create_{component}",
        "requestBody": _body(form, example=example),
        "responses": {**create["responses"], "201": created},
    }


def _body(schema: Json, **examples: Json) -> Json:
    return {"required": True, "content": _json({"schema": schema, **examples})}


def _json(content: Json) -> Json:
    return {"application/json": content}


def _components(jobs: Mapping[str, type[BaseJob]]) -> dict[str, str]:
    """Unique component names that OpenAPI allows, one for each type: "a b" and "a_b" get different names."""
    plain = {job_type: re.sub(r"[^A-Za-z0-9._-]", "_", job_type) for job_type in jobs}
    shared = {name for name, count in Counter(plain.values()).items() if count > 1}
    return {
        job_type: name if name not in shared or name == job_type else f"{name}-{fingerprint(job_type)[:12]}"
        for job_type, name in plain.items()
    }


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
    """Add the document and its page to an app; call this after the routes were added."""
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
