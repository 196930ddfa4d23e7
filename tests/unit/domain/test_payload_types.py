"""What may be a type in a payload, how moments come back, and which payloads are equal."""

import enum
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PrivateAttr,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema
from typing_extensions import TypedDict

from jobledger import PayloadError
from jobledger.domain.canonical import alike
from jobledger.domain.payload import Payload, fingerprint, to_json

PRAGUE = ZoneInfo("Europe/Prague")


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass
class Point:
    x: float
    y: float


def payload_of(perform: Callable[..., Any]) -> Payload:
    return Payload.from_signature(perform, "Import")


def stored(perform: Callable[..., Any], **arguments: Any) -> Any:
    """What the ledger keeps of a payload."""
    return json.loads(payload_of(perform).encode(arguments, "Import"))


def there_and_back(payload: Payload, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `_perform` gets of what `dispatch` was given."""
    return payload.decode(json.loads(payload.encode(arguments, "Import")), "Import")


# -- anything that pydantic reads from JSON


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    id: UUID
    day: date
    colour: Colour
    pair: tuple[int, int]
    tags: frozenset[str] = frozenset()


class Area(BaseModel):
    model_config = ConfigDict(extra="forbid")
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return self.side**2


class ReadAs(BaseModel):
    model_config = ConfigDict(extra="forbid")
    user: int = Field(validation_alias=AliasChoices("userId", AliasPath("users", 0)))


class WrittenAs(BaseModel):
    user: int = Field(0, serialization_alias="uid")


class ReadAndWrittenAs(BaseModel):
    user: int = Field(validation_alias="userId", serialization_alias="uid")


class Shouting(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper, extra="allow")
    user: int


class WithPrivate(BaseModel):
    user: int
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


class WithFactory(BaseModel):
    id: UUID = Field(default_factory=uuid4)
    at: datetime = Field(default_factory=lambda: datetime.now(PRAGUE))


class Told(BaseModel):
    """A secret that says how it is written."""

    secret: SecretStr

    @field_serializer("secret", when_used="json")
    def _tell(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


class Raw(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
    data: bytes
    share: float


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: set[str] = set()


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []


Item = TypeVar("Item")


class Box(BaseModel, Generic[Item]):
    item: Item


class Options(TypedDict, total=False):
    tags: Annotated[set[str], Field(alias="t")]
    level: int


@pydantic_dataclass
class Labelled:
    label: Annotated[str, Field(alias="l")]
    words: set[str]


class Named(NamedTuple):
    left: int
    words: frozenset[str]


class Unknown:
    """A class that says itself how it is read and written, and knows no equality."""

    def __init__(self, value: int) -> None:
        self.value = value

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        return core_schema.no_info_plain_validator_function(
            lambda given: given if isinstance(given, cls) else cls(given),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda one: one.value),
        )


STRICT = Strict(id=UUID(int=5), day=date(2026, 1, 1), colour=Colour.RED, pair=(1, 2), tags=frozenset("abc"))
SAME: Any = object()


@pytest.mark.parametrize(
    ("kind", "given_", "back"),
    [
        (Strict, STRICT, SAME),
        (Strict, STRICT.model_dump(mode="json"), STRICT),
        (list[Strict] | None, [STRICT], SAME),
        (Annotated[UUID, Field(strict=True)], UUID(int=7), SAME),
        (Annotated[UUID, Field(strict=True)], str(UUID(int=7)), UUID(int=7)),
        (Annotated[date, Field(strict=True)], date(2026, 1, 1), SAME),
        (Annotated[tuple[int, ...], Field(strict=True)], (1, 2), SAME),
        (Area, Area(side=2), SAME),
        (Json[list[int]], "[1, 2]", [1, 2]),
        (Json[set[str]], '["b", "a"]', {"a", "b"}),
        (Json, '{"b": 1, "a": 2}', {"a": 2, "b": 1}),
        (Sequence[int], (1, 2), [1, 2]),
        (Sequence[int], range(2), [0, 1]),
        (Mapping[str, int], OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        (AbstractSet[int], {1, 2}, SAME),
        (Any, (1, 2), [1, 2]),
        (ReadAs, ReadAs(userId=3), SAME),
        (ReadAs, {"users": [3]}, ReadAs(userId=3)),
        (WrittenAs, WrittenAs(user=3), SAME),
        (ReadAndWrittenAs, ReadAndWrittenAs(userId=3), SAME),
        (dict[str, ReadAndWrittenAs], {"a": {"userId": 3}}, {"a": ReadAndWrittenAs(userId=3)}),
        (Shouting, Shouting(USER=3, more={"a": 1}), SAME),
        (WithFactory, WithFactory(id=UUID(int=1), at=datetime(2026, 1, 1, tzinfo=UTC)), SAME),
        (Told, Told(secret="hush"), SAME),
        (Raw, Raw(data=b"\xff", share=1.0), SAME),
        (bytes, "žluť".encode(), SAME),
        (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(tricks={"sit"}), SAME),
        (list[Cat | Dog], [{"kind": "dog"}, Cat()], [Dog(), Cat()]),
        (Tree, Tree(name="a", children=[Tree(name="b")]), SAME),
        (Box[date], Box[date](item=date(2026, 1, 1)), SAME),
        (Box[int], Box(item=5), Box[int](item=5)),
        (Options, {"t": {"a"}, "level": 1}, {"tags": {"a"}, "level": 1}),
        (Labelled, Labelled(l="a", words={"b", "c"}), SAME),
        (Named, Named(1, frozenset("ab")), SAME),
        (RootModel[set[str]], RootModel[set[str]]({"a", "b"}), SAME),
        (Annotated[str, AfterValidator(str.strip)], " a ", "a"),
        (str, "02:30:00[Europe/Prague]", SAME),
        (float, 1e308, SAME),
        (float, 5e-324, SAME),
    ],
)
def test_what_pydantic_reads_from_json_may_be_a_type(kind: Any, given_: Any, back: Any) -> None:
    def perform(self: Any, value: kind) -> None: ...

    assert there_and_back(payload_of(perform), {"value": given_})["value"] == (given_ if back is SAME else back)


def test_so_may_what_has_no_equality_of_its_own() -> None:
    def perform(self: Any, value: Unknown, rows: Iterable[int], private: WithPrivate) -> None: ...

    back = there_and_back(payload_of(perform), {"value": 5, "rows": [1, "2"], "private": {"user": 3}})

    assert (back["value"].value, list(back["rows"]), back["private"].user) == (5, [1, 2], 3)


def test_a_number_that_json_has_no_form_for_may_be_written_as_the_type_says() -> None:
    def perform(self: Any, raw: Raw) -> None: ...

    assert math.isnan(there_and_back(payload_of(perform), {"raw": Raw(data=b"", share=math.nan)})["raw"].share)


def test_a_parameter_may_say_more_of_itself() -> None:
    def perform(
        self: Any,
        rows: int = Field(5, ge=1),
        words: list[str] = Field(default_factory=list),  # noqa: B008
        size: Annotated[int, Field(default_factory=lambda: 7, alias="s")] = ...,  # type: ignore[assignment]
        named: str = Field("x", alias="other", validation_alias="another"),
    ) -> None: ...

    payload = payload_of(perform)
    assert payload.field_names == ("rows", "words", "size", "named")
    assert there_and_back(payload, {"size": 3}) == {"rows": 5, "words": [], "size": 3, "named": "x"}
    assert there_and_back(payload, {"rows": 2, "words": ["a"], "size": 1, "named": "y"})["named"] == "y"
    with pytest.raises(PayloadError, match=r"Import: rows: Input should be greater than or equal to 1"):
        payload.encode({"rows": 0, "size": 1}, "Import")


def test_a_default_may_be_made_by_the_annotation() -> None:
    def perform(self: Any, words: Annotated[list[str], Field(default_factory=list)]) -> None: ...

    assert there_and_back(payload_of(perform), {}) == {"words": []}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Any, {1, 2}, r"value: \{1, 2\} would come back as \[1, 2\]"),
        (Any, date(2013, 1, 1), "would come back as '2013-01-01'"),
        (Any, Cat(), "would come back as {'kind'"),
        (Any, Named(1, frozenset()), "would come back as"),
        (SecretStr, "hush", "would not come back as it is"),
        (Annotated[int, AfterValidator(lambda number: number + 1)], 1, "value: 2 would come back as 3"),
        (dict[int | str, int], {1: 1, "1": 2}, "two keys of a dictionary would both be '1'"),
        (dict[frozenset[int], int], {frozenset([1]): 1}, "cannot be written as JSON"),
        (dict[tuple[int, int], int], {(1, 2): 3}, "does not survive JSON"),
        (str | time, time(2, 30), "would come back as '02:30:00'"),
        (Iterable[int], ["x"], "cannot be written as JSON"),
    ],
)
def test_what_would_not_come_back_is_refused_by_name(kind: Any, value: Any, said: str) -> None:
    def perform(self: Any, value: kind) -> None: ...

    with pytest.raises(PayloadError, match=f"Import: the payload .*{said}"):
        payload_of(perform).encode({"value": value}, "Import")


def test_a_value_that_a_field_leaves_out_is_refused() -> None:
    class Partial(BaseModel):
        shown: int
        hidden: int = Field(5, exclude=True)

    def perform(self: Any, value: Partial) -> None: ...

    assert stored(perform, value=Partial(shown=1)) == {"value": {"shown": 1}}
    with pytest.raises(PayloadError, match=r"hidden=3.* would come back as .*hidden=5"):
        stored(perform, value=Partial(shown=1, hidden=3))


# -- moments


def test_moments_come_back_in_the_nights_of_a_clock_change() -> None:
    def perform(self: Any, at: datetime) -> None: ...

    for at, utc in (
        (datetime(2026, 10, 25, 2, 30, tzinfo=PRAGUE), "00:30"),
        (datetime(2026, 10, 25, 2, 30, tzinfo=PRAGUE, fold=1), "01:30"),
        (datetime(2026, 3, 29, 2, 30, tzinfo=PRAGUE), "01:30"),
        (datetime(1850, 1, 1, tzinfo=PRAGUE), "23:02"),  # when its offset had seconds
    ):
        back = there_and_back(payload_of(perform), {"at": at})["at"]
        assert back.astimezone(UTC).strftime("%H:%M") == utc
        assert at.utcoffset() is not None


@settings(max_examples=100)
@given(some.datetimes(timezones=some.timezones(), allow_imaginary=True), some.integers(0, 1))
def test_any_moment_of_any_zone_comes_back(moment: datetime, fold: int) -> None:
    def perform(self: Any, at: datetime) -> None: ...

    at = moment.replace(fold=fold)
    assert alike(there_and_back(payload_of(perform), {"at": at})["at"], at)


class Shift(BaseModel):
    begins: time
    breaks: dict[str, list[time]] = {}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (time, time(2, 30, tzinfo=PRAGUE)),
        (time | None, time(2, 30, 0, 5, tzinfo=PRAGUE)),
        (list[time], [time(2, 30), time(2, 30, tzinfo=PRAGUE), time(2, 30, tzinfo=UTC)]),
        (dict[time, int], {time(2, 30, tzinfo=PRAGUE): 1}),
        (Annotated[time, Field(strict=True)], time(2, 30, tzinfo=PRAGUE)),
        (Annotated[list[time] | None, Field(max_length=2)], [time(2, 30, tzinfo=PRAGUE)]),
        (set[time], {time(2, 30, tzinfo=PRAGUE), time(3)}),
        (time | str, time(2, 30, tzinfo=PRAGUE)),
        (Shift, Shift(begins=time(6, tzinfo=PRAGUE), breaks={"tea": [time(8, tzinfo=PRAGUE)]})),
        (Point | Shift, Shift(begins=time(6, tzinfo=PRAGUE))),
    ],
)
def test_a_time_of_day_keeps_its_zone(kind: Any, value: Any) -> None:
    def perform(self: Any, value: kind) -> None: ...

    payload = payload_of(perform)
    back = there_and_back(payload, {"value": value})["value"]
    assert alike(back, value)
    assert "Europe/Prague" in repr(back)
    again = there_and_back(payload, json.loads(payload.encode({"value": value}, "Import")))["value"]
    assert alike(again, value)


def test_a_zone_that_there_is_not_is_refused() -> None:
    def perform(self: Any, at: time) -> None: ...

    for text in ("02:30:00[Europe/Nowhere]", "02:30:00[../etc/passwd]", "02:30:00[Europe]", "26:30:00[Europe/Prague]"):
        with pytest.raises(PayloadError, match="Import: at: Input should be in a valid time format"):
            payload_of(perform).encode({"at": text}, "Import")


# -- equal payloads


def test_a_set_is_written_in_the_order_of_its_members() -> None:
    def perform(self: Any, words: set[str], nested: set[frozenset[int]], listed: list[str], either: Iterable[str]): ...

    words = {"one", "two", "three", "four", "five"}
    assert payload_of(perform).encode(
        {"words": words, "nested": {frozenset({10, 9}), frozenset()}, "listed": words, "either": words}, "Import"
    ) == (
        '{"either":["five","four","one","three","two"],"listed":["five","four","one","three","two"],'
        '"nested":[[9,10],[]],"words":["five","four","one","three","two"]}'
    )


def test_a_list_that_a_validator_made_of_a_set_keeps_its_order() -> None:
    def perform(self: Any, words: Annotated[list[str], BeforeValidator(lambda given: sorted(given, key=len))]): ...

    assert stored(perform, words={"ccc", "bb", "a"}) == {"words": ["a", "bb", "ccc"]}


def test_keys_are_in_their_order() -> None:
    def perform(self: Any, labels: dict[str, Any], **rest: Any) -> None: ...

    one = payload_of(perform).encode({"labels": {"b": 1, "a": {"d": 2, "c": 3}}, "z": 1, "y": 2}, "Import")
    other = payload_of(perform).encode({"y": 2, "z": 1, "labels": {"a": {"c": 3, "d": 2}, "b": 1}}, "Import")

    assert one == other == '{"labels":{"a":{"c":3,"d":2},"b":1},"y":2,"z":1}'
    assert to_json({"b": 1, "a": 2}, "it", 100) == '{"a":2,"b":1}'


def hash_of(perform: Callable[..., Any], **arguments: Any) -> tuple[str, str]:
    """What equal payloads have in common, now and formerly."""
    payload = payload_of(perform)
    compared = payload.compared(json.loads(payload.encode(arguments, "Import")), "Import")
    return fingerprint(compared.now), fingerprint(compared.formerly)


class Order(BaseModel):
    price: Decimal
    at: datetime | None = None
    tags: frozenset[str] = frozenset()


def test_equal_payloads_are_equal_however_they_are_given() -> None:
    def perform(self: Any, share: float, price: Decimal, at: datetime, order: Order, colour: Colour) -> None: ...

    night = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    given_ = [
        {"share": 1, "price": 1, "at": night, "order": {"price": "1.50"}, "colour": "red"},
        {"share": 1e0, "price": 1.0, "at": night.astimezone(PRAGUE), "order": Order(price="1.5"), "colour": Colour.RED},
        {"share": "1.0", "price": "1e0", "at": night.isoformat(), "order": {"price": 1.5}, "colour": Colour.RED},
        {"share": Decimal(1), "price": Decimal("1.00"), "at": "2026-10-25T02:30+02:00", "order": {"price": "15e-1"}},
    ]

    assert len({hash_of(perform, **{"colour": "red", **one})[0] for one in given_}) == 1
    assert stored(perform, **given_[3], colour="red")["price"] == "1.00"  # what is stored is what was given


def test_what_had_a_stable_text_before_is_found_by_what_was_left_of_it() -> None:
    def perform(self: Any, price: Decimal, at: datetime, numbers: set[int], area: Area, rows: int = 5) -> None: ...

    arguments = {"price": "1.50", "at": "2026-01-01T12:00:00+01:00", "numbers": {9, 2}, "area": {"side": 2}}
    now, former = hash_of(perform, **arguments)
    # As it was written before, and taken the SHA-256 of.
    assert former == fingerprint({**arguments, "numbers": list({9, 2}), "area": {"side": 2, "size": 4}, "rows": 5})
    assert now != former


texts = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
scalars = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | texts
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(texts, inner), max_leaves=6)


@settings(max_examples=50)
@given(some.dictionaries(texts, values))
def test_what_has_one_spelling_only_is_compared_as_before(arguments: dict[str, Any]) -> None:
    def simple(self: Any, path: str, rows: int = 100) -> None: ...
    def anything(self: Any) -> None: ...

    now, former = hash_of(simple, path="a.csv")
    assert now == former == fingerprint({"path": "a.csv", "rows": 100})
    kept = json.loads(json.dumps(arguments).replace("-0.0", "0.0"))
    now, former = hash_of(anything, given=kept)
    assert now == former == fingerprint({"given": kept})


def test_a_time_in_a_zone_is_not_found_by_what_was_left_of_one_without() -> None:
    def perform(self: Any, at: time) -> None: ...

    assert not set(hash_of(perform, at=time(2, 30))) & set(hash_of(perform, at=time(2, 30, tzinfo=PRAGUE)))
