"""/docs and the OpenAPI document, from an app in this process: nothing here needs a server."""

import asyncio
import re
from collections.abc import Iterator
from datetime import time
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, Field, InstanceOf, Json

from jobledger import BaseJob, Connections, Settings
from jobledger.registry import load_job_modules, registry
from jobledger.web.api.jobs import dispatchable_jobs
from jobledger.web.app import create_app


@pytest.fixture
def app() -> FastAPI:
    load_job_modules(["api_jobs"])
    return create_app(Connections(Settings()))


def _get(app: FastAPI, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get(path)

    return asyncio.run(ask())


def _document(app: FastAPI) -> dict[str, Any]:
    document: dict[str, Any] = _get(app, "/openapi.json").json()
    return document


def _body(document: dict[str, Any], path: str) -> dict[str, Any]:
    body: dict[str, Any] = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return body


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


class TestPage:
    def test_needs_nothing_from_anywhere_else(self, app: FastAPI) -> None:
        page = _get(app, "/docs")
        assert page.status_code == 200
        assert "//" not in page.text.replace("<!doctype", "")
        assert not re.search(r"<script>|<style|style=|onload", page.text)
        policy = page.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
        assert not any("http" in one or "unsafe" in one for one in policy)

    def test_finds_all_that_it_names(self, app: FastAPI) -> None:
        names = re.findall(r'(?:src|href)="([^"]+)"', _get(app, "/docs").text)
        assert len(names) == 5
        for name in names:
            answer = _get(app, f"/{name}")
            assert (answer.status_code, len(answer.content) > 10) == (200, True), name

    @pytest.mark.parametrize("path", ["/redoc", "/static/../app.py", "/static/%2e%2e/app.py"])
    def test_is_all_that_is_served(self, app: FastAPI, path: str) -> None:
        assert _get(app, path).status_code == 404


class TestDocument:
    def test_has_the_fields_of_each_job(self, app: FastAPI) -> None:
        document = _document(app)
        either = _body(document, "/create-jobs/")["schema"]["anyOf"]
        union = _resolved(document, either[0])
        assert either[1]["items"] == either[0]
        assert set(union["discriminator"]["mapping"]) == set(dispatchable_jobs()) >= {"EmptyTable", "reports.send"}
        kinds = [_resolved(document, one) for one in union["oneOf"]]
        (report,) = [kind for kind in kinds if kind["properties"]["job"]["const"] == "reports.send"]
        assert report["description"] == "Sends a report."
        payload = _resolved(document, report["properties"]["payload"])
        assert list(payload["properties"]) == ["day", "to", "kind", "copies", "note"]
        assert payload["required"] == ["day", "to"]
        assert payload["properties"]["kind"]["enum"] == ["short", "long"]
        address = _resolved(document, payload["properties"]["to"]["items"])
        assert address["properties"]["number"]["minimum"] == 1

    def test_has_a_form_for_each_job(self, app: FastAPI) -> None:
        document = _document(app)
        for job_type, job_class in dispatchable_jobs().items():
            form = _body(document, f"/create-jobs/{job_type}")["schema"]
            assert form["title"] == job_type
            assert form["properties"]["queue"]["default"] == job_class.options.chosen_queue
            assert form["properties"]["on_parent_failure"]["enum"] == ["cancel", "run", "hold"]
            assert form["properties"]["on_parent_failure"]["default"] == job_class.options.on_parent_failure
            assert "job" not in form["properties"]

    def test_names_no_job_that_is_not_for_the_api(self, app: FastAPI) -> None:
        assert "jobledger.on_failed" in [one.job_type for one in registry]
        assert "on_failed" not in str(_document(app))

    def test_has_an_example_for_each_job_which_fits_it(self, app: FastAPI) -> None:
        document = _document(app)
        examples = _body(document, "/create-jobs/")["examples"]
        for job_type, job_class in dispatchable_jobs().items():
            value = examples[job_type]["value"]
            assert (value["job"], value["queue"]) == (job_type, job_class.options.chosen_queue)
            assert job_class.payload_type is not None
            job_class.payload_type.encode(value["payload"], job_type)
        assert examples["EmptyTable"]["value"]["payload"]["schema"] == "public"
        assert len(examples["several"]["value"]) == len(dispatchable_jobs())

    def test_refers_only_to_what_it_has(self, app: FastAPI) -> None:
        document = _document(app)
        for ref in re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(document)):
            assert ref in document["components"]["schemas"]


class Created(BaseModel):
    """Named like a component of our own, and it contains itself."""

    inner: "list[Created]" = Field(min_length=1)


class Opaque:
    """Can be read from JSON, and has no schema."""


class TestStrangeJob:
    @pytest.fixture
    def defined(self) -> Iterator[list[type[BaseJob]]]:
        load_job_modules(["api_jobs"])
        made: list[type[BaseJob]] = []
        yield made
        for job_class in made:
            registry.forget(job_class.job_type)

    def test_with_a_model_that_contains_itself_and_is_named_like_ours(self, defined: list[type[BaseJob]]) -> None:
        class Nested(BaseJob):
            job_type = "nested / {strange} name"
            api_dispatchable = True

            def _perform(self, tree: Created) -> None: ...

        defined.append(Nested)
        document = _document(create_app(Connections(Settings())))
        assert list(document["components"]["schemas"]["Created"]["properties"]) == ["job_id", "status", "is_duplicate"]
        assert "/create-jobs/nested%20/%20%7Bstrange%7D%20name" in document["paths"]

    def test_with_a_parameter_that_has_no_schema(self, defined: list[type[BaseJob]]) -> None:
        class Unspeakable(BaseJob):
            api_dispatchable = True

            def _perform(self, it: Annotated[InstanceOf[Opaque], BeforeValidator(lambda _: Opaque())]) -> None: ...

        defined.append(Unspeakable)
        document = _document(create_app(Connections(Settings())))
        payload = _body(document, "/create-jobs/Unspeakable")["schema"]["properties"]["payload"]
        assert payload["type"] == "object"
        assert "EmptyTable" in str(document["paths"])

    def test_of_which_there_are_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for job_class in dispatchable_jobs().values():
            monkeypatch.setattr(job_class, "api_dispatchable", False)
        document = _document(create_app(Connections(Settings())))
        assert "api_dispatchable" in document["components"]["schemas"]["request"]["description"]

    def test_with_a_type_that_differs_from_another_in_a_sign_only(self, defined: list[type[BaseJob]]) -> None:
        class Spaced(BaseJob):
            """Takes a number."""

            job_type = "load it"
            api_dispatchable = True

            def _perform(self, number: int) -> None: ...

        class Slashed(BaseJob):
            """Takes a text."""

            job_type = "load/it"
            api_dispatchable = True

            def _perform(self, text: str) -> None: ...

        class Plain(BaseJob):
            """Takes nothing."""

            job_type = "load_it"
            api_dispatchable = True

            def _perform(self) -> None: ...

        defined += [Spaced, Slashed, Plain]
        document = _document(create_app(Connections(Settings())))
        mapping = document["components"]["schemas"]["request"]["discriminator"]["mapping"]
        refs = [mapping[one.job_type] for one in defined]
        assert len(set(refs)) == 3
        assert refs[2].endswith("request.load_it")
        for ref, one in zip(refs, defined, strict=True):
            assert _resolved(document, {"$ref": ref})["description"] == one.__doc__
        operations = [path["post"]["operationId"] for path in document["paths"].values() if "post" in path]
        assert len(set(operations)) == len(operations)

    def test_with_a_payload_that_has_types_of_all_kinds(self, defined: list[type[BaseJob]]) -> None:
        class Strict(BaseModel, strict=True):
            id: UUID
            size: Annotated[int, Field(alias="s")]

        class Kinds(BaseJob):
            api_dispatchable = True

            def _perform(
                self, strict: Strict, at: time, numbers: Json[list[int]], words: frozenset[str] = frozenset()
            ) -> None: ...

        defined.append(Kinds)
        document = _document(create_app(Connections(Settings())))
        example = _body(document, "/create-jobs/Kinds")["example"]["payload"]
        assert Kinds.payload_type is not None
        Kinds.payload_type.encode({**example, "numbers": "[1]"}, "Kinds")
