"""The payload of a job: a pydantic model made from the signature of `_perform`, JSON in and JSON out."""

import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from jobledger.domain.options import RESERVED_NAMES
from jobledger.errors import JobDefinitionError, PayloadError

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_RESULT_BYTES: Final = 8 * 1024 * 1024

_FIELD_PREFIX: Final = "p_"
"""Field names of the model are the parameters' names with this prefix; the parameter's own name is the alias.
So a parameter may be called `schema`, `copy` or `json` without shadowing an attribute of pydantic's model."""


class Payload:
    """What a job class takes: checks at dispatch, and gives back typed values at the run.

    Attributes:
        model: the pydantic model, for OpenAPI forms; None if the job takes any JSON object.
    """

    def __init__(self, model: type[BaseModel] | None) -> None:
        self.model = model

    @property
    def field_names(self) -> tuple[str, ...]:
        """The names of the parameters, without those that `**rest` takes."""
        return tuple(name.removeprefix(_FIELD_PREFIX) for name in self.model.model_fields) if self.model else ()

    @classmethod
    def from_signature(cls, perform: Callable[..., Any], owner: str) -> "Payload":
        """Read the parameters of `_perform`.

        Args:
            perform: the function, `self` first.
            owner: the job class's name, for errors.

        Raises:
            JobDefinitionError: a parameter cannot be filled from JSON, or is named like an option.
        """
        parameters = list(inspect.signature(perform).parameters.values())[1:]
        if not parameters:
            return cls(None)
        try:
            hints = typing.get_type_hints(perform, include_extras=True)
        except (NameError, TypeError) as error:
            raise JobDefinitionError(
                f"{owner}._perform: an annotation cannot be resolved ({error}). Types used in it must be "
                "importable at the top of the module that defines the job."
            ) from error
        fields: dict[str, Any] = {}
        extra: typing.Literal["allow", "forbid"] = "forbid"
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                extra = "allow"
                continue
            _refuse_unfillable(parameter, owner)
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            hint = hints.get(parameter.name, Any)
            fields[_FIELD_PREFIX + parameter.name] = (hint, Field(default, alias=parameter.name))
        config = ConfigDict(
            extra=extra,
            title=owner,
            ser_json_inf_nan="constants",
            validate_default=True,
            arbitrary_types_allowed=False,
            frozen=True,
        )
        try:
            return cls(create_model(f"{owner}Payload", __config__=config, **fields))
        except Exception as error:  # pydantic raises many kinds for a type it has no schema for
            raise JobDefinitionError(f"{owner}._perform: its parameters cannot be read from JSON ({error}).") from error

    def encode(self, given: Mapping[str, Any], job_type: str) -> str:
        """Check a payload and write it as JSON.

        Returns:
            The JSON object, as it will stand in the ledger.

        Raises:
            PayloadError: a field is missing, unknown, of the wrong type, or does not survive JSON.
        """
        if self.model is None:
            return to_json(dict(given), f"{job_type}: the payload", MAX_PAYLOAD_BYTES)
        try:
            checked = self.model.model_validate(dict(given))
            dumped = checked.model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            raise PayloadError(f"{job_type}: {_explain(error)}") from None
        except ValueError as error:  # pydantic's serialisation errors, and what validators of users raise
            raise PayloadError(f"{job_type}: the payload cannot be written as JSON: {error}") from error
        text = to_json(dumped, f"{job_type}: the payload", MAX_PAYLOAD_BYTES)
        try:
            survived = self.model.model_validate(json.loads(text)) == checked
        except ValidationError as error:
            raise PayloadError(f"{job_type}: the payload does not survive JSON: {_explain(error)}") from None
        if not survived:
            raise PayloadError(f"{job_type}: the payload changes when it is written as JSON: {text[:200]}")
        return text

    def decode(self, stored: Mapping[str, Any], job_type: str) -> dict[str, Any]:
        """Turn a stored payload into the typed arguments of `_perform`.

        Raises:
            PayloadError: the stored payload does not fit the class as it is now.
        """
        if self.model is None:
            return {}
        try:
            checked = self.model.model_validate(dict(stored))
        except ValidationError as error:
            raise PayloadError(
                f"{job_type}: the stored payload does not fit this version of the class: {_explain(error)}"
            ) from None
        known = {name.removeprefix(_FIELD_PREFIX): getattr(checked, name) for name in type(checked).model_fields}
        return known | (checked.__pydantic_extra__ or {})


def fingerprint(value: Any) -> str:
    """The same text for the same JSON, however it is spelled: a SHA-256, in hexadecimal digits."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def storable(text: str) -> str:
    """The text as Postgres can store it: without NUL and lone surrogates, which are written out instead."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def to_json(value: Any, what: str, limit_bytes: int) -> str:
    """Write a value as JSON that Postgres' jsonb can hold.

    Args:
        value: anything made of dict (with text keys), list, str, int, finite float, bool and None.
        what: how the error names it.
        limit_bytes: the longest that the text may be, in UTF-8.

    Raises:
        PayloadError: not JSON, too long, or with a NUL or a lone surrogate, which jsonb refuses.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_not_json)
        size = len(text.encode())
        comes_back = json.loads(text) == _as_json_reads(value)
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise PayloadError(f"{what} is not JSON: {error}") from None
    if not comes_back:
        raise PayloadError(f"{what} is not JSON: a key that is not text would come back as text.")
    if size > limit_bytes:
        raise PayloadError(f"{what} has {size:,} bytes of JSON; the limit is {limit_bytes:,}.")
    if "\\u0000" in text and "\x00" in "".join(_texts(value)):
        raise PayloadError(f"{what} holds a NUL character, which Postgres cannot store.")
    return text


def _not_json(value: Any) -> Any:
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form")


def _as_json_reads(value: Any) -> Any:
    """Tuples come back as lists, which is fine; everything else must come back equal."""
    if isinstance(value, dict):
        return {key: _as_json_reads(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json_reads(item) for item in value]
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*_texts(key), *_texts(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def _refuse_unfillable(parameter: inspect.Parameter, owner: str) -> None:
    if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
        raise JobDefinitionError(
            f"{owner}._perform: parameter {str(parameter)!r} has no name in a JSON payload; "
            "use ordinary named parameters."
        )
    if parameter.name in RESERVED_NAMES:
        raise JobDefinitionError(
            f"{owner}._perform: a parameter may not be called {parameter.name!r}, because "
            f"dispatch({parameter.name}=…) is an option. Rename the parameter."
        )


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"]) or "payload"
        given = "" if item["type"] == "missing" else f" (given: {_short(item['input'])})"
        problems.append(f"{where}: {item['msg']}{given}")
    return "; ".join(problems[:10])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
