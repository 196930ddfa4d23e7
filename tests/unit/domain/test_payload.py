"""The payload: a model made from a signature, checked at dispatch, the same after its way through JSON."""

import enum
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from pydantic import (
    BaseModel,
    Field,
    computed_field,
)

from jobledger import JobDefinitionError, PayloadError
from jobledger.domain.options import RESERVED_NAMES
from jobledger.domain.payload import MAX_PAYLOAD_BYTES, Payload, encode_result, to_json

PRAGUE = ZoneInfo("Europe/Prague")


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"


class Address(BaseModel):
    street: str
    number: int = 1


@dataclass
class Point:
    x: float
    y: float


class Parameters:
    """Signatures of `_perform`."""

    def nothing(self) -> None: ...

    def simple(self, path: str, rows: int = 100) -> None: ...

    def untyped(self, path, rows=100) -> None: ...

    def open(self, path: str, **more: Any) -> None: ...

    def keyword_only(self, *, path: str) -> None: ...

    def texts(self, path: "str", when: "date | None" = None) -> None: ...

    def every_kind(
        self,
        text: str,
        whole: int,
        number: float,
        flag: bool,
        day: date,
        moment: datetime,
        length: timedelta,
        key: UUID,
        price: Decimal,
        colour: Colour,
        address: Address,
        point: Point,
        names: list[str],
        pair: tuple[int, str],
        labels: set[str],
        by_name: dict[str, list[int]],
        mode: Literal["append", "replace"],
        either: int | str | None,
        small: Annotated[int, Field(ge=0, le=9)],
        anything: Any,
    ) -> None: ...

    def like_the_model(
        self, schema: str, copy: bool, json: str, dict: int, model_fields: str, _private: int
    ) -> None: ...

    def raw(self, data: bytes) -> None: ...


def payload_of(perform: Callable[..., Any]) -> Payload:
    return Payload.from_signature(perform, "Import")


def stored(perform: Callable[..., Any], **arguments: Any) -> Any:
    """What the ledger keeps of a payload."""
    return json.loads(payload_of(perform).encode(arguments, "Import"))


def there_and_back(payload: Payload, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `_perform` gets of what `dispatch` was given."""
    return payload.decode(json.loads(payload.encode(arguments, "Import")), "Import")


EVERY_KIND = payload_of(Parameters.every_kind)

texts = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
numbers = some.floats(allow_nan=False, allow_infinity=False)
scalars = some.none() | some.booleans() | some.integers() | numbers | texts
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(texts, inner), max_leaves=6)


# -- what goes in comes out


@settings(max_examples=50)
@given(
    some.fixed_dictionaries(
        {
            "text": texts,
            "whole": some.integers(),
            "number": numbers,
            "flag": some.booleans(),
            "day": some.dates(),
            "moment": some.datetimes(timezones=some.just(UTC)),
            "length": some.timedeltas(timedelta(-1000), timedelta(1000)),
            "key": some.uuids(),
            "price": some.decimals(-1000, 1000, places=2),
            "colour": some.sampled_from(Colour),
            "address": some.builds(Address, street=texts, number=some.integers()),
            "point": some.builds(Point, numbers, numbers),
            "names": some.lists(texts),
            "pair": some.tuples(some.integers(), texts),
            "labels": some.sets(texts),
            "by_name": some.dictionaries(texts, some.lists(some.integers())),
            "mode": some.sampled_from(["append", "replace"]),
            "either": some.none() | some.integers() | texts,
            "small": some.integers(0, 9),
            "anything": values,
        }
    )
)
def test_typed_arguments_come_back_as_they_were_given(arguments: dict[str, Any]) -> None:
    back = there_and_back(EVERY_KIND, arguments)

    assert back == arguments
    assert {name: type(value) for name, value in back.items()} == {
        name: type(value) for name, value in arguments.items()
    }


@settings(max_examples=50)
@given(some.dictionaries(texts, values))
@example({"nested": {"\\u0000": "a backslash and a zero are no NUL"}})
def test_any_json_object_comes_back_as_it_was_given(arguments: dict[str, Any]) -> None:
    assert json.loads(payload_of(Parameters.nothing).encode(arguments, "Import")) == arguments


def test_a_job_without_parameters_has_no_arguments() -> None:
    assert there_and_back(payload_of(Parameters.nothing), {"source": "api"}) == {}


def test_defaults_are_part_of_what_is_stored() -> None:
    assert stored(Parameters.simple, path="a.csv") == {"path": "a.csv", "rows": 100}


def test_parameters_without_types_take_any_json() -> None:
    assert stored(Parameters.untyped, path=["a", {"b": None}]) == {"path": ["a", {"b": None}], "rows": 100}


def test_keyword_only_parameters_are_ordinary() -> None:
    assert there_and_back(payload_of(Parameters.keyword_only), {"path": "a.csv"}) == {"path": "a.csv"}


def test_further_keywords_are_taken_if_the_signature_says_so() -> None:
    arguments = {"path": "a.csv", "encoding": "latin-1", "columns": [1, 2]}

    assert there_and_back(payload_of(Parameters.open), arguments) == arguments


def test_annotations_may_be_texts() -> None:
    arguments = {"path": "a.csv", "when": date(2013, 1, 1)}

    assert there_and_back(payload_of(Parameters.texts), arguments) == arguments


def test_parameters_may_be_called_like_attributes_of_the_model() -> None:
    arguments = {"schema": "public", "copy": True, "json": "{}", "dict": 1, "model_fields": "x", "_private": 2}

    assert there_and_back(payload_of(Parameters.like_the_model), arguments) == arguments
    assert stored(Parameters.like_the_model, **arguments) == arguments


def test_values_are_read_as_json_would_bring_them() -> None:
    back = there_and_back(payload_of(Parameters.texts), {"path": "a.csv", "when": "2013-01-01"})

    assert back["when"] == date(2013, 1, 1)


# -- what does not fit


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "path: Field required"),
        ({"path": 5}, r"path: Input should be a valid string \(given: 5\)"),
        ({"path": "a", "rows": "many"}, r"rows: .*valid integer.* \(given: 'many'\)"),
        ({"path": "a", "rows": 1.5}, "rows: .*valid integer"),
        ({"path": "a", "rows": None}, "rows: .*valid integer"),
        ({"path": "a", "speed": 5}, r"speed: Extra inputs are not permitted \(given: 5\)"),
        ({"rows": "many"}, "path: Field required; rows: "),
        ({"path": "a", "p_rows": 5}, "p_rows: Extra inputs"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_the_name_of_the_field(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(PayloadError, match=f"Import: .*{said}"):
        payload_of(Parameters.simple).encode(arguments, "Import")


def test_a_refusal_says_where_inside_a_value_it_lies() -> None:
    def perform(self: Any, addresses: list[Address]) -> None: ...

    with pytest.raises(PayloadError, match=r"addresses\.1\.number: "):
        payload_of(perform).encode({"addresses": [{"street": "a"}, {"street": "b", "number": "x"}]}, "Import")


def test_a_refusal_shows_the_beginning_of_a_long_value_only() -> None:
    with pytest.raises(PayloadError) as refusal:
        payload_of(Parameters.simple).encode({"path": "a", "rows": "x" * 10_000}, "Import")

    assert len(str(refusal.value)) < 300


UNKEEPABLE = [
    pytest.param(math.nan, "is not JSON", id="nan"),
    pytest.param(-math.inf, "is not JSON", id="infinity"),
    pytest.param({1: "a"}, "a key that is not text", id="number as key"),
    pytest.param({None: "a"}, "a key that is not text", id="null as key"),
    pytest.param({(1, 2): "a"}, "is not JSON", id="tuple as key"),
    pytest.param("a\x00b", "NUL", id="NUL"),
    pytest.param({"a\x00b": 1}, "NUL", id="NUL in a key"),
    pytest.param([["deep", "a\x00b"]], "NUL", id="NUL deep inside"),
    pytest.param("\ud800", "is not JSON", id="lone surrogate"),
    pytest.param({"\udfff": 1}, "is not JSON", id="lone surrogate in a key"),
    pytest.param("x" * MAX_PAYLOAD_BYTES, "the limit is", id="too long"),
    pytest.param("é" * (MAX_PAYLOAD_BYTES // 2), "the limit is", id="too many bytes"),
    pytest.param(10**5000, "is not JSON", id="too many digits"),
]


@pytest.mark.parametrize(("value", "said"), UNKEEPABLE)
def test_a_value_that_postgres_cannot_keep_is_refused(value: object, said: str) -> None:
    with pytest.raises(PayloadError, match=f"Import: the payload .*{said}"):
        payload_of(Parameters.nothing).encode({"path": value}, "Import")


@pytest.mark.parametrize(("value", "_said"), UNKEEPABLE)
def test_and_so_it_is_in_a_parameter_without_a_type(value: object, _said: str) -> None:
    with pytest.raises(PayloadError, match="Import: the payload "):
        payload_of(Parameters.untyped).encode({"path": value}, "Import")


@pytest.mark.parametrize("value", [b"raw", {1, 2}, object(), date(2013, 1, 1), Decimal("1.5"), Colour])
def test_a_job_that_takes_any_object_takes_json_only(value: object) -> None:
    with pytest.raises(PayloadError, match="is not JSON"):
        payload_of(Parameters.nothing).encode({"path": value}, "Import")


@pytest.mark.parametrize("depth", [200, 400, 600, 800, 5_000, 50_000])
def test_a_value_nested_too_deep_is_refused_and_one_less_deep_taken(depth: int) -> None:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]

    try:
        text = payload_of(Parameters.nothing).encode({"nested": nested}, "Import")
    except PayloadError:
        assert depth > 200
    else:
        assert text == '{"nested":' + "[" * (depth + 1) + "]" * (depth + 1) + "}"


@pytest.mark.parametrize("depth", [100, 190, 230])
def test_a_parameter_may_be_nested_as_deep_as_pydantic_writes(depth: int) -> None:
    nested: Any = 5
    for _ in range(depth):
        nested = [nested]

    assert there_and_back(payload_of(Parameters.untyped), {"path": nested})["path"] == nested


def test_a_value_that_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)

    with pytest.raises(PayloadError, match="is not JSON"):
        payload_of(Parameters.nothing).encode({"circle": circle}, "Import")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(PayloadError, match="cannot be written as JSON"):
        payload_of(Parameters.raw).encode({"data": b"\xff\xfe"}, "Import")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_without_json_form_is_refused_where_a_float_is_wanted(number: float) -> None:
    def perform(self: Any, share: float) -> None: ...

    with pytest.raises(PayloadError, match="is not JSON"):
        payload_of(perform).encode({"share": number}, "Import")


# -- names that collide


@pytest.mark.parametrize("name", ["self", "cls", "limit", "p_path", "__class__"])
def test_a_field_may_have_any_name_that_python_can_pass(name: str) -> None:
    def perform(self: Any, /, path: str = "", **rest: Any) -> None: ...

    assert there_and_back(payload_of(perform), {"path": "a", name: 1}) == {"path": "a", name: 1}
    assert stored(Parameters.nothing, **{name: 1}) == {name: 1}


def test_a_field_that_is_called_like_the_first_parameter_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"Import: 'self' cannot be a field of the payload.*_perform\(self, /"):
        payload_of(Parameters.open).encode({"path": "a", "self": 1}, "Import")


def test_a_default_that_does_not_fit_is_refused_by_the_name_of_the_parameter() -> None:
    def perform(self: Any, limit: int = "many") -> None: ...  # type: ignore[assignment]

    with pytest.raises(PayloadError, match=r"^Import: limit: Input should be a valid integer"):
        payload_of(perform).encode({}, "Import")


def test_a_type_that_is_not_there_is_refused_in_our_words() -> None:
    class Unfinished(BaseModel):
        later: "NeverDefined"  # type: ignore[name-defined] # noqa: F821

    def perform(self: Any, value: Unfinished) -> None: ...

    with pytest.raises(JobDefinitionError, match="Import: the types of its payload cannot be used"):
        payload_of(perform).encode({"value": {"later": 1}}, "Import")


# -- results


class Report(BaseModel):
    rows: dict[int, int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return sum(self.rows.values())


class Twice(BaseModel):
    a: int = Field(serialization_alias="same")
    b: int = Field(serialization_alias="same")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, None),
        ({"b": 1, "a": (1, 2)}, '{"a":[1,2],"b":1}'),
        ({1: "a", 2: "b"}, '{"1":"a","2":"b"}'),
        (Report(rows={1: 2}), '{"rows":{"1":2},"total":2}'),
        ({"red", "green", "blue"}, '["blue","green","red"]'),
        ({"at": time(2, 30, tzinfo=ZoneInfo("Europe/Prague"))}, '{"at":"02:30:00[Europe/Prague]"}'),
        ((number for number in range(3)), "[0,1,2]"),
        ([Decimal("1.50"), UUID(int=1), Colour.RED], '["1.50","00000000-0000-0000-0000-000000000001","red"]'),
    ],
)
def test_a_result_is_written_as_json(result: Any, text: str | None) -> None:
    assert encode_result(result) == text


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({1: "a", "1": "b"}, "two keys of a dictionary would both be '1'"),
        ({"rows": [{True: 1, "true": 2}]}, "two keys of a dictionary would both be 'true'"),
        (({None: number, "None": 2} for number in range(3)), "two keys of a dictionary would both be 'None'"),
        (Twice(a=1, b=2), "two keys of a dictionary would both be 'same'"),
        (object(), "Unable to serialize unknown type"),
        (math.nan, "is not JSON"),
        ("a\x00b", "NUL"),
        ("\ud800", "cannot be written as JSON"),
        (b"\xff", "cannot be written as JSON"),
    ],
)
def test_a_result_that_would_lose_something_is_refused(result: Any, said: str) -> None:
    with pytest.raises(PayloadError, match=f"(?i)the result .*{said}"):
        encode_result(result)


def test_a_result_that_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)

    with pytest.raises(PayloadError, match="result cannot be written as JSON"):
        encode_result(circle)


def test_a_value_that_json_would_change_is_refused() -> None:
    class Child(Address):
        floor: int

    def perform(self: Any, address: Address) -> None: ...

    with pytest.raises(PayloadError, match="changes when it is written as JSON"):
        payload_of(perform).encode({"address": Child(street="a", floor=5)}, "Import")


@pytest.mark.parametrize(
    ("in_the_ledger", "said"), [({"path": 5}, "path: "), ({"path": "a", "gone": 1}, "gone: "), ({}, "path: ")]
)
def test_a_stored_payload_of_another_version_is_refused(in_the_ledger: dict[str, Any], said: str) -> None:
    with pytest.raises(PayloadError, match=f"does not fit this version of the class: {said}"):
        payload_of(Parameters.simple).decode(in_the_ledger, "Import")


def test_to_json_counts_bytes_rather_than_characters() -> None:
    assert to_json("éé", "it", 6) == '"éé"'
    with pytest.raises(PayloadError, match="it has 6 bytes of JSON; the limit is 5"):
        to_json("éé", "it", 5)


# -- signatures that cannot work


def perform_like(source: str) -> Callable[..., Any]:
    """A function made from the text of its parameters."""
    scope: dict[str, Any] = {}
    exec(f"def perform(self, {source}): ...", {"Any": Any, "Lock": type}, scope)
    return scope["perform"]


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_parameter_may_not_be_called_like_an_option(name: str) -> None:
    with pytest.raises(JobDefinitionError, match=f"{name!r}.*Rename"):
        payload_of(perform_like(f"path, {name}=None"))


@pytest.mark.parametrize("parameters", ["path, /", "*paths", "path, *more, rows=1"])
def test_a_parameter_without_a_name_in_json_is_refused(parameters: str) -> None:
    with pytest.raises(JobDefinitionError, match="no name in a JSON payload"):
        payload_of(perform_like(parameters))


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match="Nowhere"):
        payload_of(perform_like("path: 'Nowhere'"))


def test_a_type_that_json_has_no_form_for_is_refused() -> None:
    def perform(self: Any, connection: Parameters) -> None: ...

    with pytest.raises(JobDefinitionError, match="cannot be read from JSON"):
        payload_of(perform)


def test_a_default_that_does_not_fit_its_own_type_is_refused_at_dispatch() -> None:
    def perform(self: Any, day: date = "someday") -> None: ...  # type: ignore[assignment]

    with pytest.raises(PayloadError, match="day: "):
        payload_of(perform).encode({}, "Import")


def test_a_default_is_read_as_if_it_had_been_given() -> None:
    def perform(self: Any, day: date = "2013-01-01") -> None: ...  # type: ignore[assignment]

    assert there_and_back(payload_of(perform), {}) == {"day": date(2013, 1, 1)}
