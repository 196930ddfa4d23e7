"""What the signature of `_perform` says, also in a generic class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import pytest
from pydantic import BaseModel

from jobledger import JobDefinitionError
from jobledger.domain.signature import Signature, UnboundTypeVariables, bindings_of, type_variables_of

One = TypeVar("One")
Two = TypeVar("Two")
Bounded = TypeVar("Bounded", bound=BaseModel)


class Box(BaseModel, Generic[One]):
    value: One


class Crate(BaseModel, Generic[Two]):
    value: Two


@dataclass
class Shelf(Generic[One]):
    value: One


class Base(Generic[One, Two]):
    def _perform(
        self,
        plain: One,
        many: list[One] | None,
        by_key: dict[str, Sequence[Two]],
        small: Annotated[One, "small"],
        box: Box[One],
        crate: Crate[One],
        shelf: Shelf[Two],
        any_box: Box,  # type: ignore[type-arg]
        none: int = 0,
    ) -> Two: ...


class Swapped(Base[Two, One], Generic[One, Two]): ...


class Same(Base[One, One]): ...


class Mixin: ...


class Concrete(Mixin, Swapped[int, str]): ...


class Grandchild(Concrete): ...


def hints_of(job_class: type[Any]) -> dict[str, Any]:
    return Signature(job_class._perform, job_class.__name__, bindings_of(job_class, "_perform")).hints


def hints_if(one: Any, two: Any) -> dict[str, Any]:
    """The annotations of `Base._perform` for these types, written out."""
    return {
        "plain": one,
        "many": list[one] | None,
        "by_key": dict[str, Sequence[two]],
        "small": Annotated[one, "small"],
        "box": Box[one],
        "crate": Crate[one],
        "shelf": Shelf[two],
        "none": int,
    }


@pytest.mark.parametrize(
    ("job_class", "one", "two"),
    [
        (Base[int, str], int, str),
        (Swapped[int, str], str, int),
        (Same[bytes], bytes, bytes),
        (Base[list[int], Box[int]], list[int], Box[int]),
    ],
)
def test_type_variables_are_what_a_subclass_says(job_class: Any, one: Any, two: Any) -> None:
    hints = hints_of(_child_of(job_class))

    del hints["any_box"]  # a generic class of which nothing is said, here or there, may be of anything
    assert hints == hints_if(one, two)


def _child_of(alias: Any) -> type[Any]:
    class Child(alias): ...  # type: ignore[misc]

    return Child


def test_and_what_its_ancestors_say() -> None:
    for job_class in (Concrete, Grandchild):
        hints = hints_of(job_class)

        assert (hints["plain"], hints["shelf"], hints["none"]) == (str, Shelf[int], int)


def test_a_class_without_type_variables_is_as_it_is_written() -> None:
    class Plain:
        def _perform(self, boxes: list[Box[int]], any_box: Box, nothing=None): ...  # type: ignore[no-untyped-def, type-arg]

    assert hints_of(Plain) == {**get_type_hints(Plain._perform, include_extras=True), "nothing": Any}


def test_what_stands_for_nothing_is_named() -> None:
    with pytest.raises(UnboundTypeVariables, match=r"Same\._perform: the type of 'plain' .* because One") as refusal:
        hints_of(Same)

    assert refusal.value.variables == {One} == type_variables_of(Same)
    assert type_variables_of(Concrete) == frozenset()


def method(self: Any, one: Bounded) -> None: ...
def nested(self: Any, one: dict[str, "Crate[One]"]) -> None: ...
def alone(self: Any, one: "Crate[One]") -> None: ...


@pytest.mark.parametrize("perform", [method, nested, alone])
def test_so_is_a_type_variable_of_a_method(perform: Any) -> None:
    with pytest.raises(UnboundTypeVariables, match="the type of 'one' is not known"):
        Signature(perform, "Sample", {})


def test_an_annotation_that_raises_is_refused() -> None:
    def perform(self: Any, one: "1 / 0") -> None: ...  # type: ignore[valid-type]

    with pytest.raises(JobDefinitionError, match=r"Sample\._perform: an annotation cannot be resolved"):
        Signature(perform, "Sample", {})


def test_the_first_parameter_is_the_job() -> None:
    def ordinary(this: Any, one: int) -> None: ...
    def positional(this: Any, /, **rest: int) -> None: ...

    assert Signature(ordinary, "Sample", {}).receiver == "this"
    assert Signature(positional, "Sample", {}).receiver is None
