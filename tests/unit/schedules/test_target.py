"""What a schedule may call, and what it is called with."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest

from jobledger import BaseJob, ScheduleError, Tick
from jobledger.schedules.target import call, code_of, for_dispatch, is_job_class, name_of, refuse_unfit

TICK = Tick("nightly", datetime(2026, 3, 29, 1, tzinfo=UTC), None, datetime(2026, 3, 29, 1, 0, 1, tzinfo=UTC))

Called = list[tuple[Any, ...]]


class TargetLoad(BaseJob):
    def _perform(self, table: str, rows: int = 5, day: date | None = None) -> None: ...


class TargetAnything(BaseJob):
    def _perform(self, **anything: Any) -> None: ...


class TargetAncestor(BaseJob):
    """No job: it has no _perform."""


def nothing() -> None: ...


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


# -- with or without the tick


def test_a_function_without_parameters_is_called_without_any() -> None:
    called: Called = []

    call(lambda: called.append(()), TICK, (), {})

    assert called == [()]


@pytest.mark.parametrize("make", [
    lambda called: lambda tick: called.append(tick),
    lambda called: lambda tick=None: called.append(tick),
    lambda called: lambda *, tick: called.append(tick),
    lambda called: lambda tick, **rest: called.append(tick),
    lambda called: logged(lambda tick: called.append(tick)),
    lambda called: functools.partial(lambda first, tick: called.append(tick), 1),
])  # fmt: skip
def test_a_parameter_tick_is_given_the_tick(make: Callable[[list[Tick]], Callable[..., Any]]) -> None:
    called: list[Tick] = []
    function = make(called)

    refuse_unfit("nightly", function, (), {})
    call(function, TICK, (), {})

    assert called == [TICK]


def test_a_bound_method_and_an_object_that_can_be_called_are_functions() -> None:
    called: Called = []

    class Import:
        def run(self, tick: Tick) -> None:
            called.append(("run", tick))

        def __call__(self, tick: Tick) -> None:
            called.append(("call", tick))

    for function in (Import().run, Import()):
        refuse_unfit("nightly", function, (), {})
        call(function, TICK, (), {})

    assert called == [("run", TICK), ("call", TICK)]


@pytest.mark.parametrize(("make", "args", "kwargs", "expected"), [
    (lambda called: lambda tick: called.append(tick), ("mine",), {}, "mine"),
    (lambda called: lambda tick: called.append(tick), (), {"tick": "mine"}, "mine"),
    (lambda called: functools.partial(lambda tick: called.append(tick), tick="mine"), (), {}, "mine"),
    (lambda called: functools.partial(lambda tick: called.append(tick), "mine"), (), {}, "mine"),
    (lambda called: lambda *tick: called.append(tick), (), {}, ()),
    (lambda called: lambda **tick: called.append(tick), (), {}, {}),
    (lambda called: lambda *args, **kwargs: called.append((args, kwargs)), (1,), {"two": 2}, ((1,), {"two": 2})),
    (lambda called: lambda tick=5, /: called.append(tick), (), {}, 5),
])  # fmt: skip
def test_a_tick_that_is_given_otherwise_is_left_alone(
    make: Callable[[list[Any]], Callable[..., Any]], args: tuple[Any, ...], kwargs: dict[str, Any], expected: object
) -> None:
    called: list[Any] = []
    function = make(called)

    refuse_unfit("nightly", function, args, kwargs)
    call(function, TICK, args, kwargs)

    assert called == [expected]


def test_what_the_function_raises_is_for_the_caller() -> None:
    def fails() -> None:
        raise KeyError("as asked")

    with pytest.raises(KeyError, match="as asked"):
        call(fails, TICK, (), {})


# -- what no tick could call


async def coroutine() -> None: ...


async def async_generator() -> AsyncIterator[int]:
    yield 1


def generator() -> Iterator[int]:
    yield 1


class AsyncCall:
    async def __call__(self) -> None: ...

    async def method(self) -> None: ...


@pytest.mark.parametrize("target", [
    coroutine, async_generator, generator, AsyncCall(), AsyncCall().method, functools.partial(coroutine),
])  # fmt: skip
def test_a_function_that_does_not_run_when_it_is_called_is_refused(target: object) -> None:
    with pytest.raises(ScheduleError, match="would not run when it is called: it is `async`, or yields"):
        refuse_unfit("nightly", target, (), {})


def test_a_function_that_hides_a_coroutine_is_refused_when_it_is_called() -> None:
    """It would seem to have been fired, and nothing would have been dispatched."""
    refuse_unfit("nightly", logged(coroutine), (), {})

    with pytest.raises(ScheduleError, match="did nothing: it gave back a coroutine"):
        call(logged(coroutine), TICK, (), {})


@pytest.mark.parametrize("target", [None, 5, "jobs.nightly", [nothing], dict, Tick])
def test_what_is_neither_a_function_nor_a_job_class_is_refused(target: object) -> None:
    with pytest.raises(ScheduleError, match="is neither a function nor a job class"):
        refuse_unfit("nightly", target, (), {})


@pytest.mark.parametrize(("target", "args", "kwargs", "said"), [
    (lambda table: None, (), {}, "missing a required argument: 'table'"),
    (lambda table, tick: None, (), {}, "missing a required argument: 'table'"),
    (lambda tick, /: None, (), {}, "missing a required"),
    (lambda: None, ("public",), {}, "too many positional arguments"),
    (lambda tick: None, (1, 2), {}, "too many positional arguments"),
    (lambda: None, (), {"table": "flights"}, "unexpected keyword argument 'table'"),
    (lambda table: None, ("a",), {"table": "b"}, "multiple values for argument 'table'"),
    ({}.update, (), {}, "no signature found"),
])  # fmt: skip
def test_a_function_that_cannot_be_called_so_is_refused(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(ScheduleError, match=rf"cannot be called: .*{said}"):
        refuse_unfit("nightly", target, args, kwargs)


def test_an_ancestor_of_jobs_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"TargetAncestor has no _perform, so there is nothing to dispatch"):
        refuse_unfit("nightly", TargetAncestor, (), {})


# -- names


@pytest.mark.parametrize(("target", "name"), [
    (nothing, f"{__name__}.nothing"),
    (logged(nothing), f"{__name__}.nothing"),
    (functools.partial(nothing), f"{__name__}.nothing"),
    (functools.partial(logged(nothing)), f"{__name__}.nothing"),
    (AsyncCall(), f"{__name__}.AsyncCall"),
    (AsyncCall().method, f"{__name__}.AsyncCall.method"),
    (TargetLoad, "TargetLoad"),
])  # fmt: skip
def test_the_name_of_a_target(target: object, name: str) -> None:
    assert name_of(target) == name


def test_all_closures_of_a_function_are_the_same_code() -> None:
    one, other = [lambda number=number: number for number in range(2)]

    assert code_of(one) is code_of(other)
    assert code_of(AsyncCall()) is code_of(AsyncCall())
    assert code_of(functools.partial(logged(nothing))) is code_of(nothing)
    assert code_of(nothing) is not code_of(one)


def test_a_job_class_is_told_from_a_function() -> None:
    assert [is_job_class(one) for one in (TargetLoad, TargetLoad(), TargetLoad.dispatch, Tick)] == [
        True,
        False,
        False,
        False,
    ]


# -- payload and options


def test_a_payload_is_kept_as_json_has_it_with_its_defaults() -> None:
    payload, options = for_dispatch("nightly", TargetLoad, {"table": "flights", "day": date(2013, 1, 2)}, {})

    assert payload == {"table": "flights", "rows": 5, "day": "2013-01-02"}
    assert options == {}


def test_options_are_kept_as_json_has_them() -> None:
    _, options = for_dispatch(
        "nightly", TargetLoad, {"table": "a"}, {"timeout": "15m", "expires_in": "6h", "queue": "low", "max_attempts": 3}
    )

    assert options == {"timeout": 900.0, "expires_in": 21600.0, "queue": "low", "max_attempts": 3}


@pytest.mark.parametrize(("target", "payload", "options", "said"), [
    (TargetLoad, None, {}, "table: Field required"),
    (TargetLoad, {}, {}, "table: Field required"),
    (TargetLoad, {"table": "a", "rows": "many"}, {}, "rows: .*integer"),
    (TargetLoad, {"table": "a", "colour": "red"}, {}, "colour: Extra inputs are not permitted"),
    (TargetLoad, {"table": "a\0"}, {}, "NUL"),
    (TargetLoad, ["table"], {}, "payload=.* is no dictionary"),
    (TargetLoad, [], {}, "payload=.* is no dictionary"),
    (TargetLoad, "table", {}, "payload=.* is no dictionary"),
    (TargetAnything, {"queue": "low"}, {}, "queue cannot be in a payload"),
    (TargetAnything, {"x": object()}, {}, "JSON"),
    (TargetAnything, {"x": float("nan")}, {}, "JSON"),
    (TargetLoad, {"table": "a"}, {"colour": "red"}, "know colour; there are expires_in, max_attempts, owner, priority"),
    (TargetLoad, {"table": "a"}, {"delay": 5}, "does not know delay"),
    (TargetLoad, {"table": "a"}, {"queue": "a b"}, "queue='a b'"),
    (TargetLoad, {"table": "a"}, {"timeout": "soon"}, "timeout='soon'"),
    (TargetLoad, {"table": "a"}, {"max_attempts": 0}, "max_attempts=0"),
    (nothing, {"table": "a"}, {}, "payload: only a job class takes these"),
    (nothing, {}, {"queue": "low"}, "payload, queue: only a job class"),
    (nothing, None, {"title": "Nightly", "queue": "low"}, "queue, title: only a job class"),
])  # fmt: skip
def test_what_could_not_be_dispatched_is_refused(target: Any, payload: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ScheduleError, match=f"Schedule 'nightly'.*{said}"):
        for_dispatch("nightly", target, payload, options)
