"""The signature of `_perform`: its parameters, and their types in a class that may be generic."""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import time
from types import UnionType
from typing import Annotated, Any, Final, Literal, ParamSpec, TypeVar, TypeVarTuple, Union

from pydantic import WrapValidator

from jobledger.domain.canonical import with_times_in_zones
from jobledger.domain.options import RESERVED_NAMES
from jobledger.errors import JobDefinitionError

Bindings = Mapping[Any, Any]
"""The types for the type variables of a generic class."""


_IN_ZONE: Final = WrapValidator(lambda given, read: read(with_times_in_zones(given)))


class UnboundTypeVariables(JobDefinitionError):
    """A parameter's type is not known: it contains a type variable without a type.

    Attributes:
        variables: the type variables without a type.
    """

    def __init__(self, message: str, variables: frozenset[Any]) -> None:
        super().__init__(message)
        self.variables = variables


class Signature:
    """The parameters of `_perform`.

    Attributes:
        receiver: the name of its first parameter, `self`, if a keyword could bind it; else None.
        parameters: the parameters that the payload fills.
        hints: the types of the parameters.
        takes_rest: whether it accepts further fields, by `**rest`.
    """

    def __init__(self, perform: Callable[..., Any], owner: str, bindings: Bindings) -> None:
        first, *others = _parameters(perform, owner)
        self.receiver = first.name if first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD else None
        self.takes_rest = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in others)
        self.parameters = [one for one in others if one.kind is not inspect.Parameter.VAR_KEYWORD]
        for one in self.parameters:
            _refuse_unfillable(one, owner)
        hints = _hints(perform, owner) if others else {}
        self.hints = {one.name: _bound(hints.get(one.name, Any), bindings, one, owner) for one in self.parameters}


def bindings_of(job_class: type[Any], name: str) -> Bindings:
    """The types that `job_class` gives to the type variables of the class that defines a method.

    `class X(Base[int])` gives `int` to `T` of `class Base(BaseJob, Generic[T])`.
    """
    definer = next((one for one in job_class.__mro__ if name in vars(one)), job_class)
    return _seen_from(job_class, definer, {}) or {}


def type_variables_of(job_class: type[Any]) -> frozenset[Any]:
    """The type variables that a class leaves open for its subclasses.

    From its bases: `__parameters__` may not be there yet while the class is being defined.
    """
    found = [one for base in vars(job_class).get("__orig_bases__", ()) for one in getattr(base, "__parameters__", ())]
    return frozenset(found)


def _seen_from(one: type[Any], definer: type[Any], bindings: Bindings) -> Bindings | None:
    """The bindings of `definer` if it is this class or an ancestor; else None."""
    if one is definer:
        return bindings
    for base in vars(one).get("__orig_bases__", one.__bases__):
        origin = typing.get_origin(base) or base
        if not isinstance(origin, type) or origin is typing.Generic:
            continue
        parameters = getattr(origin, "__parameters__", ())
        arguments = [_replaced(argument, bindings) for argument in typing.get_args(base)]
        found = _seen_from(origin, definer, dict(zip(parameters, arguments, strict=False)))
        if found is not None:
            return found
    return None


def _bound(hint: Any, bindings: Bindings, parameter: inspect.Parameter, owner: str) -> Any:
    bound = _replaced(hint, bindings)
    unbound = frozenset(_variables(bound))
    if unbound:
        names = ", ".join(sorted(str(one.__name__) for one in unbound))
        raise UnboundTypeVariables(
            f"{owner}._perform: the type of {parameter.name!r} is not known, because {names} stands for no type. "
            "Say a type; or, if a base class is generic, of what this class is: class …(Base[int]).",
            unbound,
        )
    return bound


def _replaced(hint: Any, bindings: Bindings) -> Any:
    """A type with its variables replaced, and with times of day that may name their zone."""
    if hint is time:
        return Annotated[time, _IN_ZONE]
    if isinstance(hint, TypeVar):
        return bindings.get(hint, _default(hint))
    parameters = _parameters_of_model(hint)
    if any(one in bindings for one in parameters):
        return hint[tuple(bindings.get(one, one) for one in parameters)]
    arguments = _arguments(hint)
    replaced = tuple(_replaced(one, bindings) for one in arguments)
    if all(new is old for new, old in zip(replaced, arguments, strict=True)):
        return hint
    origin = typing.get_origin(hint)
    if origin is Annotated:
        if hint.__origin__ is time:  # last, so that the constraints apply to the parsed time
            return Annotated[time, *hint.__metadata__, _IN_ZONE]
        return Annotated[replaced[0], *hint.__metadata__]
    return (Union if origin is UnionType else origin)[replaced]


def _variables(hint: Any) -> Iterator[Any]:
    """The type variables in a type."""
    if isinstance(hint, TypeVar | ParamSpec | TypeVarTuple):
        yield hint
    if (getattr(hint, "__pydantic_generic_metadata__", None) or {}).get("origin") is not None:
        yield from _parameters_of_model(hint)  # a generic model without arguments has open type variables
    for one in _arguments(hint):
        yield from _variables(one)


def _arguments(hint: Any) -> tuple[Any, ...]:
    """The types in a type."""
    if typing.get_origin(hint) is Annotated:
        return (hint.__origin__,)
    return tuple(typing.get_args(hint)) if typing.get_origin(hint) is not Literal else ()


def _parameters_of_model(hint: Any) -> tuple[Any, ...]:
    """The type variables of a generic pydantic model, which is a class also when it has arguments."""
    said = getattr(hint, "__pydantic_generic_metadata__", None) if isinstance(hint, type) else None
    return tuple(said["parameters"]) if said else ()


def _default(variable: Any) -> Any:
    """The type for an unbound type variable: its default (PEP 696), or the variable itself."""
    has_default = getattr(variable, "has_default", None)
    return variable.__default__ if has_default is not None and has_default() else variable


def _parameters(perform: Callable[..., Any], owner: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(perform).parameters.values())
    except (TypeError, ValueError) as error:
        raise JobDefinitionError(f"{owner}._perform: its parameters cannot be read ({error}).") from error
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    if not parameters or parameters[0].kind not in positional:
        raise JobDefinitionError(f"{owner}._perform: its first parameter must be the job: say def _perform(self, …).")
    return parameters


def _hints(perform: Callable[..., Any], owner: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(perform, include_extras=True)
    except Exception as error:  # an annotation is the user's code
        raise JobDefinitionError(
            f"{owner}._perform: an annotation cannot be resolved ({error}). Types used in it must be "
            "importable at the top of the module that defines the job."
        ) from error


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
