"""The payload of a job: a pydantic model made from the signature of `_perform`, JSON in and JSON out."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Any, Final

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from jobledger.domain.canonical import (
    alike,
    comparable,
    has_times_in_zones,
    in_order,
    parsed,
    settled,
    with_times_in_zones,
)
from jobledger.domain.signature import Bindings, Signature
from jobledger.errors import JobDefinitionError, PayloadError

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_RESULT_BYTES: Final = 8 * 1024 * 1024

_FIELD_PREFIX: Final = "p\x00"
"""Field names of the model are the parameters' names with this prefix; the parameter's own name is the alias.
So a parameter may be called `schema`, `copy` or `json` without shadowing an attribute of pydantic's model; and, since
Postgres stores no NUL, a payload has no field that is called so."""

_ALIASES: Final = ("alias", "validation_alias", "serialization_alias")

_BOTH_NAMES: Final[dict[str, Any]] = {"by_alias": True, "by_name": True}
"""Options for reading payloads: a field of a user's model may have different aliases for reading and for writing."""


class Payload:
    """The payload type of a job class: checks payloads at dispatch, and restores typed values for the attempt.

    Attributes:
        model: the pydantic model, for OpenAPI forms; None if the job takes any JSON object.
    """

    def __init__(self, model: type[BaseModel] | None, receiver: str | None = None) -> None:
        self.model = model
        self._receiver = receiver

    @property
    def field_names(self) -> tuple[str, ...]:
        """The names of the parameters, without those that `**rest` takes."""
        return tuple(map(_without_prefix, self.model.model_fields)) if self.model else ()

    @classmethod
    def from_signature(cls, perform: Callable[..., Any], owner: str, bindings: Bindings | None = None) -> "Payload":
        """Read the parameters of `_perform`.

        Args:
            perform: the function, `self` first.
            owner: the job class's name, for errors.
            bindings: the types for the type variables of the class.

        Raises:
            JobDefinitionError: a parameter cannot be filled from JSON, or has the name of an option.
        """
        signature = Signature(perform, owner, bindings or {})
        if not signature.parameters and not signature.takes_rest:
            return cls(None)
        fields: dict[str, Any] = {
            _FIELD_PREFIX + one.name: _field(one, signature.hints[one.name]) for one in signature.parameters
        }
        config = ConfigDict(
            extra="allow" if signature.takes_rest else "forbid",
            title=owner,
            ser_json_inf_nan="constants",
            validate_default=True,
            arbitrary_types_allowed=False,
            frozen=True,
        )
        try:
            return cls(create_model(f"{owner}Payload", __config__=config, **fields), signature.receiver)
        except Exception as error:  # pydantic raises many kinds for a type it has no schema for
            reason = str(error).replace(_FIELD_PREFIX, "")
            raise JobDefinitionError(
                f"{owner}._perform: its parameters cannot be read from JSON ({reason})."
            ) from error

    def encode(self, given: Mapping[str, Any], job_type: str) -> str:
        """Check a payload and write it as JSON.

        Args:
            given: Python values, or their JSON.

        Returns:
            The JSON object to store. Equal values give the same text in every process, except for the spelling of
            numbers and moments; see `compared`.

        Raises:
            PayloadError: a field is missing, unknown, of the wrong type, or would not come back from JSON unchanged.
        """
        if self.model is None:
            return to_json(dict(given), f"{job_type}: the payload", MAX_PAYLOAD_BYTES)
        if self._receiver in given:
            raise PayloadError(
                f"{job_type}: {self._receiver!r} cannot be a field of the payload: it is the first parameter of "
                f"_perform. Rename the field, or say def _perform({self._receiver}, /, …)."
            )
        checked = self._check(given, job_type)
        refusals = []
        for by_alias in (True, False):
            text = self._write(checked, job_type, by_alias)
            refusal = self._refusal(checked, text, job_type, by_alias)
            if refusal is None:
                return text
            refusals.append(refusal)
        raise PayloadError(f"{job_type}: the payload {refusals[0]}")

    def decode(self, stored: Mapping[str, Any], job_type: str) -> dict[str, Any]:
        """Turn a stored payload into the typed arguments of `_perform`.

        Raises:
            PayloadError: the stored payload does not fit the class as it is now.
        """
        if self.model is None:
            return {}
        try:
            checked = self._read(json.dumps(stored))
        except ValidationError as error:
            raise PayloadError(
                f"{job_type}: the stored payload does not fit this version of the class: {_explain(error)}"
            ) from None
        return _arguments(checked)

    def compared(self, stored: Mapping[str, Any], job_type: str) -> "Compared":
        """The form of a stored payload for comparing it with others."""
        if self.model is None:
            return Compared(comparable(stored, stored), dict(stored))
        text = json.dumps(stored)
        read = self._read(text)
        now = _plain(comparable(read, self._dump(read, job_type, round_trip=True)))
        if has_times_in_zones(text):
            return Compared(now, now)  # earlier versions lost the zones
        try:
            return Compared(now, _plain(self._dump(self._read(text), job_type, round_trip=False)))
        except PayloadError:  # an earlier version would have refused this payload
            return Compared(now, now)

    def _check(self, given: Mapping[str, Any], job_type: str) -> BaseModel:
        """Validate a payload to Python values. A set given for a list is sorted, since a set's own order is random."""
        checked = self._validate(given, job_type)
        sets = {name: value for name, value in given.items() if isinstance(value, Set)}
        if not sets:
            return checked
        arguments, plain = _arguments(checked), self._settle(checked, job_type)
        ordered = {
            name: in_order(list(value), plain[name])
            for name, value in sets.items()
            if isinstance(plain.get(name), list) and _is_in_order_of_set(arguments[name], value)
        }
        return self._validate({**given, **ordered}, job_type)

    def _validate(self, given: Mapping[str, Any], job_type: str) -> BaseModel:
        """Validate as Python values or, for strict types given as JSON, as JSON."""
        assert self.model is not None
        try:
            return self.model.model_validate(dict(given), **_BOTH_NAMES)
        except ValidationError as error:
            refusal = error
        except PydanticUserError as error:
            reason = str(error).replace(_FIELD_PREFIX, "").splitlines()[0]
            raise JobDefinitionError(f"{job_type}: the types of its payload cannot be used: {reason}") from error
        try:
            return self._read(json.dumps(dict(given), allow_nan=False))
        except ValidationError as error:
            nearer = min(refusal, error, key=ValidationError.error_count)
        except (TypeError, ValueError, RecursionError):  # it was not given as JSON
            nearer = refusal
        raise PayloadError(f"{job_type}: {_explain(nearer)}")

    def _read(self, text: str) -> BaseModel:
        """Validate JSON text.

        Raises:
            ValidationError: it does not fit the model.
        """
        assert self.model is not None
        try:
            return self.model.model_validate_json(text, **_BOTH_NAMES)
        except ValidationError as error:
            refusal = error
        is_too_deep = refusal.errors(include_url=False)[0]["type"] == "json_invalid"  # for pydantic's parser, not ours
        if not is_too_deep and not has_times_in_zones(text):
            raise refusal
        try:
            return self.model.model_validate(with_times_in_zones(json.loads(text)), **_BOTH_NAMES)
        except ValidationError:
            raise refusal from None

    def _dump(self, checked: BaseModel, job_type: str, *, round_trip: bool, by_alias: bool = True) -> dict[str, Any]:
        try:
            text = checked.model_dump_json(by_alias=by_alias, round_trip=round_trip, warnings=False)
            return dict(parsed(text))
        except Exception as error:  # a user's serializer may raise any exception
            raise PayloadError(f"{job_type}: the payload cannot be written as JSON: {error}") from error

    def _settle(self, checked: BaseModel, job_type: str, *, by_alias: bool = True) -> dict[str, Any]:
        return _plain(settled(checked, self._dump(checked, job_type, round_trip=True, by_alias=by_alias)))

    def _write(self, checked: BaseModel, job_type: str, by_alias: bool) -> str:
        plain = self._settle(checked, job_type, by_alias=by_alias)
        return to_json(plain, f"{job_type}: the payload", MAX_PAYLOAD_BYTES)

    def _refusal(self, checked: BaseModel, text: str, job_type: str, by_alias: bool) -> str | None:
        """The reason why the JSON does not restore the given values; None if it does."""
        try:
            read = self._read(text)
        except ValidationError as error:
            return f"does not survive JSON: {_explain(error)}"
        after = _arguments(read)
        for name, value in _arguments(checked).items():
            if name not in after or not alike(value, after[name]):
                before, behind = _short(value), _short(after.get(name))
                back = f"would come back as {behind}" if behind != before else "would not come back as it is"
                return f"changes when it is written as JSON: {name}: {before} {back}"
        if self._write(read, job_type, by_alias) != text:
            return f"changes each time it is written as JSON: {text[:200]}"
        return None


@dataclass(frozen=True, slots=True)
class Compared:
    """The form of a payload for comparing it with others.

    Attributes:
        now: equal for equal payloads.
        formerly: the form that earlier versions compared, for rows that they left in the ledger.
    """

    now: Mapping[str, Any]
    formerly: Mapping[str, Any]


def fingerprint(value: Any) -> str:
    """The SHA-256 of canonical JSON, in hexadecimal digits: independent of the order of keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def storable(text: str) -> str:
    """The text with NUL and lone surrogates, which Postgres cannot store, escaped."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def to_json(value: Any, what: str, limit_bytes: int) -> str:
    """Write a value as JSON that Postgres' jsonb can hold, with sorted keys.

    Args:
        value: anything made of dict (with text keys), list, str, int, finite float, bool and None.
        what: name of the value in the error.
        limit_bytes: maximum length of the text, in bytes of UTF-8.

    Raises:
        PayloadError: it is no JSON, too long, or contains a NUL or a lone surrogate, which jsonb refuses.
    """
    try:
        _refuse_keys(value, what)
        text = json.dumps(
            value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=_not_json
        )
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise PayloadError(f"{what} is not JSON: {error}") from None
    if size > limit_bytes:
        raise PayloadError(f"{what} has {size:,} bytes of JSON; the limit is {limit_bytes:,}.")
    if "\\u0000" in text and "\x00" in "".join(_texts(value)):
        raise PayloadError(f"{what} holds a NUL character, which Postgres cannot store.")
    return text


def encode_result(result: Any) -> str | None:
    """Write the result of a job as JSON; None if it has none.

    Raises:
        PayloadError: it is not JSON, too long, or would lose an entry of a dictionary.
    """
    if result is None:
        return None
    try:
        plain = settled(result, parsed(pydantic_core.to_json(result).decode()))
    except (ValueError, RecursionError) as error:  # pydantic's serialisation errors are ValueErrors
        raise PayloadError(f"The result cannot be written as JSON: {error}") from error
    return to_json(plain, "the result", MAX_RESULT_BYTES)


def _not_json(value: Any) -> Any:
    raise TypeError(f"{_short(value)} of type {type(value).__name__} has no JSON form")


def _refuse_keys(value: Any, what: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise PayloadError(
                    f"{what} is not JSON: a key that is not text, {_short(key)}, would come back as text."
                )
            _refuse_keys(item, what)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_keys(item, what)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*_texts(key), *_texts(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def _field(parameter: inspect.Parameter, hint: Any) -> tuple[Any, Any]:
    """A field of the model. It is read and written by the parameter's name, whatever aliases its annotation has."""
    named: dict[str, Any] = dict.fromkeys(_ALIASES, parameter.name)
    if isinstance(parameter.default, FieldInfo):
        return Annotated[hint, parameter.default], Field(**named)
    if parameter.default is parameter.empty:
        return hint, Field(**named)
    return hint, Field(parameter.default, **named)


def _without_prefix(name: str) -> str:
    return name.removeprefix(_FIELD_PREFIX)


def _plain(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """The dump, keyed by the names of the parameters."""
    return {_without_prefix(name): value for name, value in dumped.items()}


def _arguments(checked: BaseModel) -> dict[str, Any]:
    known = {_without_prefix(name): getattr(checked, name) for name in type(checked).model_fields}
    return known | (checked.__pydantic_extra__ or {})


def _is_in_order_of_set(value: Any, given: Set[Any]) -> bool:
    """Whether a value that was given as a set has become a list in the set's order, which is random."""
    if isinstance(value, Set) or not isinstance(value, Iterable):
        return False
    return not isinstance(value, Sequence) or list(value) == list(given)


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(_without_prefix(str(part)) for part in item["loc"]) or "payload"
        given = "" if item["type"] == "missing" else f" (given: {_short(item['input'])})"
        problems.append(f"{where}: {item['msg']}{given}")
    return "; ".join(problems[:10])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
