"""An example for a JSON schema: the schema's own example, or else the simplest value of the type."""

from collections.abc import Mapping
from typing import Any, Final

Json = Mapping[str, Any]

DEEPEST: Final = 6
"""Deepest nesting of an example, because a model may contain itself."""

_BY_FORMAT: Final = {
    "date": "2030-01-31",
    "date-time": "2030-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "uuid": "01970000-0000-7000-8000-000000000000",
    "email": "user@example.com",
    "uri": "https://example.com/",
}
_BY_TYPE: Final = {"boolean": False, "null": None}


def example_of(schema: Json, definitions: Json, depth: int = 0) -> Any:
    """An example of a schema.

    Args:
        schema: the schema that pydantic writes.
        definitions: the targets of `$ref`, by the last part of the reference.
        depth: nesting depth of this example.
    """
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **schema}
    for said in ("default", "const"):
        if said in schema:
            return schema[said]
    for said in ("examples", "enum"):
        if schema.get(said):
            return schema[said][0]
    for said in ("anyOf", "oneOf", "allOf"):
        if schema.get(said):
            return example_of(schema[said][0], definitions, depth)
    match schema.get("type"):
        case "object":
            return _object(schema, definitions, depth)
        case "array":
            return _array(schema, definitions, depth)
        case "string":
            return _BY_FORMAT.get(schema.get("format", ""), "text"[: schema.get("maxLength")])
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        case other:
            return _BY_TYPE.get(other or "")


def _object(schema: Json, definitions: Json, depth: int) -> dict[str, Any]:
    if depth == DEEPEST:
        return {}
    return {name: example_of(one, definitions, depth + 1) for name, one in schema.get("properties", {}).items()}


def _array(schema: Json, definitions: Json, depth: int) -> list[Any]:
    if depth == DEEPEST:
        return []
    if "prefixItems" in schema:
        return [example_of(one, definitions, depth + 1) for one in schema["prefixItems"]]
    return [example_of(schema["items"], definitions, depth + 1)] if schema.get("items") else []
