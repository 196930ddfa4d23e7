"""Classes that no worker could run: refused where they are defined, or where they are dispatched."""

import abc
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partialmethod, wraps
from typing import Any, Generic, TypeVar

import pytest

from jobledger import BaseJob, Failure, JobDefinitionError, PayloadError
from jobledger.job.unfit import ask_class
from jobledger.registry import registry


@pytest.fixture(autouse=True)
def _forget_new_classes() -> Iterator[None]:
    before = {job_class.job_type for job_class in registry}
    yield
    for job_class in registry:
        if job_class.job_type not in before:
            registry.forget(job_class.job_type)


def define(name: str = "Sample", **attributes: Any) -> type[BaseJob]:
    def _perform(self: BaseJob, table: str, rows: int = 1) -> None: ...

    return type(name, (BaseJob,), {"_perform": _perform, **attributes})


def yielding(self: Any) -> Iterator[int]:
    yield 1


async def yielding_later(self: Any) -> AsyncIterator[int]:
    yield 1


class Loader:
    def __call__(self) -> None: ...


def taking(parameters: str, *, is_async: bool = False) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(f"{'async ' * is_async}def function({parameters}): ...", scope)
    return scope["function"]


# -- _perform


@pytest.mark.parametrize(
    ("perform", "said"),
    [
        (staticmethod(taking("table")), "_perform is a staticmethod, which is not called with the job"),
        (classmethod(taking("cls, table")), "_perform is a classmethod"),
        (property(taking("self")), "_perform is a property"),
        (Loader(), "_perform is a Loader, which is not called with the job"),
        (Loader, "_perform is a type"),
        ("load", "_perform is a str"),
        (None, "_perform is a NoneType"),
        (taking(""), "first parameter must be the job"),
        (taking("*, table"), "first parameter must be the job"),
        (taking("**payload"), "first parameter must be the job"),
        (yielding, "because it yields"),
        (yielding_later, "because it yields"),
    ],
)
def test_what_is_not_called_with_the_job_or_does_nothing_is_refused(perform: Any, said: str) -> None:
    with pytest.raises(JobDefinitionError, match=f"Sample.*{said}"):
        define(_perform=perform)
    assert "Sample" not in [one.job_type for one in registry]


def listed(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> list[Any]:
        return list(function(*args, **kwargs))

    return wrapper


@pytest.mark.parametrize(
    ("perform", "fields"),
    [
        (taking("this, table"), ("table",)),
        (taking("*arguments"), ()),
        (taking("self, /, table"), ("table",)),
        (taking("self, table", is_async=True), ("table",)),
        (listed(yielding), ()),
        (partialmethod(taking("self, table, rows"), rows=5), ("table", "rows")),
    ],
)
def test_what_is_called_with_the_job_is_a_perform(perform: Any, fields: tuple[str, ...]) -> None:
    defined = define(_perform=perform)

    assert defined.payload_type is not None
    assert defined.payload_type.field_names == fields


# -- the type


@pytest.mark.parametrize("job_type", ["x" * 201, " ", "x" * 300, "a\x00b", "a\nb", "\ud800", 5, ("a",)])
def test_a_type_that_the_ledger_cannot_hold_is_refused(job_type: Any) -> None:
    with pytest.raises(JobDefinitionError, match=r"Sample: job_type=.*say a text of 1 to 200 printable") as refusal:
        define(job_type=job_type)
    assert len(str(refusal.value)) < 250


def test_so_is_the_name_of_a_class_that_would_be_its_type() -> None:
    with pytest.raises(JobDefinitionError, match="1 to 200"):
        define("X" * 300)
    assert define("X" * 300, job_type="X" * 200).job_type == "X" * 200


# -- names that are ours


@pytest.mark.parametrize("name", ["run", "call_on_failed", "_running", "options", "payload_type", "not_a_job"])
def test_a_name_that_the_worker_needs_cannot_be_taken(name: str) -> None:
    with pytest.raises(JobDefinitionError, match=rf"Sample\.{name}: jobledger needs this name"):
        define(**{name: taking("self")})


def test_other_names_can() -> None:
    define(log=None, progress=taking("self"), dispatch=classmethod(lambda cls, **given: super(cls).dispatch(**given)))


# -- how it is made


@pytest.mark.parametrize("name", ["__init__", "__new__"])
def test_a_class_that_wants_arguments_to_be_made_is_refused(name: str) -> None:
    with pytest.raises(JobDefinitionError, match=r"Sample cannot be made without arguments.*'client'"):
        define(**{name: taking("self, client")})


def test_one_that_wants_none_is_not() -> None:
    define(__init__=taking("self, client=None, *more, **others"))


def test_arguments_that_a_decorator_adds_later_are_refused_at_the_dispatch() -> None:
    defined = dataclass(define(__annotations__={"client": str}))

    with pytest.raises(JobDefinitionError, match=r"Sample cannot be made without arguments.*'client'"):
        defined.dispatch(table="flights")


# -- ancestors


class Abstract(abc.ABC):
    @abc.abstractmethod
    def rows(self) -> int: ...


def test_an_abstract_class_is_no_job_and_its_subclass_is() -> None:
    for name, attributes in (("Mixed", {}), ("Own", {"rows": abc.abstractmethod(taking("self"))})):
        bases = (BaseJob, Abstract) if name == "Mixed" else (BaseJob,)
        ancestor = type(name, bases, {"_perform": taking("self, table"), **attributes})

        assert ancestor not in list(registry)
        with pytest.raises(JobDefinitionError, match=rf"{name} is abstract \(rows\): dispatch a subclass"):
            ancestor.dispatch(table="flights")
        child = type(f"{name}Child", (ancestor,), {"rows": taking("self")})
        assert registry.lookup(f"{name}Child") is child


def test_a_job_whose_perform_is_abstract_is_no_job() -> None:
    ancestor = define("Ancestor", _perform=abc.abstractmethod(taking("self, table")))

    with pytest.raises(JobDefinitionError, match=r"Ancestor is abstract \(_perform\)"):
        ancestor.dispatch_many([{"table": "flights"}])


def test_a_subclass_of_a_job_may_be_abstract() -> None:
    child = type("Child", (define(), Abstract), {})

    with pytest.raises(JobDefinitionError, match="Child is abstract"):
        child.dispatch(table="flights")
    assert registry.lookup("Sample").job_type == "Sample"


Item = TypeVar("Item")
Key = TypeVar("Key")


class Keyed(BaseJob, Generic[Key, Item]):
    def _perform(self, items: dict[Key, list[Item]], one: Item | None = None) -> None: ...


class ByNumber(Keyed[int, Item]):
    pass


class Numbers(ByNumber[float]):
    pass


def test_a_generic_class_is_no_job_until_its_types_are_known() -> None:
    for ancestor, left in ((Keyed, "Item, Key"), (ByNumber, "Item")):
        assert ancestor not in list(registry)
        with pytest.raises(JobDefinitionError, match=f"{ancestor.__name__} is generic in {left}: dispatch a subclass"):
            ancestor.dispatch(items={})
    assert Numbers.payload_type is not None
    assert Numbers.payload_type.encode({"items": {1: ["2.5"]}}, "Numbers") == '{"items":{"1":[2.5]},"one":null}'
    with pytest.raises(PayloadError, match=r"items\.1\.0: Input should be a valid number"):
        Numbers.payload_type.encode({"items": {1: ["many"]}}, "Numbers")


def test_a_class_that_leaves_its_types_open_for_good_is_refused() -> None:
    with pytest.raises(JobDefinitionError, match=r"Open\._perform: the type of 'items' is not known.*Item, Key"):
        type("Open", (Keyed,), {})
    with pytest.raises(JobDefinitionError, match="the type of 'one' is not known"):
        define(_perform=_generic_method)


def _generic_method(self: Any, one: Item) -> None: ...


# -- check_payload and on_failed


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (taking("self, table, rows"), "say @classmethod before it"),
        (
            classmethod(taking("cls, table")),
            r"cannot be called with the parameters of _perform \(table, rows\).*'rows'",
        ),
        (classmethod(taking("cls, table, rows, more")), "missing a required argument: 'more'"),
        (classmethod(taking("cls, table, rows", is_async=True)), "would check nothing.*async"),
        (classmethod(yielding), "would check nothing"),
        (None, "say @classmethod"),
    ],
)
def test_a_check_that_could_not_be_called_or_would_not_check_is_refused(check: Any, said: str) -> None:
    with pytest.raises(JobDefinitionError, match=rf"Sample\.check_payload .*{said}"):
        define(check_payload=check)


@pytest.mark.parametrize("check", [classmethod(taking("cls, **payload")), staticmethod(taking("rows, table"))])
def test_a_check_that_can_is_taken(check: Any) -> None:
    define(check_payload=check)


def test_a_parameter_cannot_be_called_like_the_first_one_of_the_check() -> None:
    perform = taking("self, cls")

    with pytest.raises(JobDefinitionError, match="multiple values for argument 'cls'"):
        define(_perform=perform, check_payload=classmethod(taking("cls, **payload")))
    define(_perform=perform)
    define(_perform=perform, check_payload=classmethod(taking("cls, /, **payload")))


@pytest.mark.parametrize("payload", [{}, {"table": "a", "more": 1}, {"table": "a", "cls": 1}])
def test_a_payload_with_which_the_check_cannot_be_called_is_refused(payload: dict[str, Any]) -> None:
    defined = define(_perform=taking("self"), check_payload=classmethod(taking("cls, table")))

    ask_class(defined, {"table": "a"})
    with pytest.raises(PayloadError, match="Sample: check_payload cannot be called with this payload: "):
        ask_class(defined, payload)


def test_a_type_error_of_the_checks_own_stays_what_it_is() -> None:
    def check_payload(cls: Any, table: str, rows: int) -> None:
        len(rows)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        ask_class(define(check_payload=classmethod(check_payload)), {"table": "a", "rows": 1})


@pytest.mark.parametrize("on_failed", [taking("self"), taking("self, error, more"), staticmethod(taking("")), "retry"])
def test_an_on_failed_that_could_not_be_called_is_refused(on_failed: Any) -> None:
    with pytest.raises(JobDefinitionError, match=r"Sample\.on_failed cannot be called with the failure"):
        define(on_failed=on_failed)


@pytest.mark.parametrize("kind", [lambda one: one, classmethod, staticmethod])
def test_an_on_failed_may_be_of_any_kind_that_can_be_called(kind: Any) -> None:
    told: list[Any] = []
    defined = define(on_failed=kind(lambda *arguments: told.append(arguments[-1])))

    defined.call_on_failed(None, "failure")  # type: ignore[arg-type]

    assert told == ["failure"]


def test_an_on_failed_that_is_async_is_awaited() -> None:
    told: list[Failure] = []

    async def on_failed(self: BaseJob, error: Failure) -> None:
        told.append(error)

    define(on_failed=on_failed).call_on_failed(None, "failure")  # type: ignore[arg-type]

    assert told == ["failure"]
