"""The target of a schedule: a function that dispatches jobs, or a job class. Uncallable targets are refused."""

import inspect
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from jobledger.domain.options import RESERVED_NAMES, SPOKEN_OPTIONS, seconds
from jobledger.domain.payload import Payload
from jobledger.errors import DispatchRefused, ScheduleError

_NOT_ASYNC: Final = "A schedule calls an ordinary function, which dispatches jobs; `async` code belongs in a job."


class ScheduledDispatcher(Protocol):
    """The result of `JobClass.set()`."""

    def dispatch_many(self, payloads: Any, /) -> Any: ...


@runtime_checkable
class JobClass(Protocol):
    """The part of a job class that a schedule uses."""

    job_type: str
    payload_type: Payload | None
    not_a_job: str

    def set(self, **options: Any) -> ScheduledDispatcher: ...


def is_job_class(target: object) -> bool:
    """Whether the target is a job class, not a function."""
    return isinstance(target, type) and isinstance(target, JobClass)


def name_of(target: Any) -> str:
    """A job class's type, or a function's full name."""
    if is_job_class(target) and target.job_type:
        return str(target.job_type)
    plain = _plain(target)
    return f"{getattr(plain, '__module__', '')}.{getattr(plain, '__qualname__', type(plain).__qualname__)}"


def code_of(target: Any) -> Any:
    """The code of the target: one object for all closures of a function, and a new one when its module is reloaded."""
    plain = _plain(target)
    return getattr(plain, "__code__", plain if isinstance(plain, type) else type(plain))


def _plain(target: Any) -> Any:
    """The function without its `functools.partial` and `functools.wraps` wrappers."""
    return inspect.unwrap(target.func if isinstance(target, partial) else target)


def refuse_unfit(name: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a target that no tick could call.

    Raises:
        ScheduleError: the target cannot be called; the message has the reason.
    """
    where = f"Schedule {name!r}: {name_of(target)}"
    if is_job_class(target):
        if target.payload_type is None:
            raise ScheduleError(f"{where} {target.not_a_job}")
        return
    if not callable(target) or isinstance(target, type):
        raise ScheduleError(f"{where} is neither a function nor a job class.")
    for one in (target, type(target).__call__):
        if inspect.iscoroutinefunction(one) or inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            raise ScheduleError(f"{where} would not run when it is called: it is `async`, or yields. {_NOT_ASYNC}")
    try:
        given = {"tick": None} if _wants_tick(target, args, kwargs) else {}
        inspect.signature(target).bind(*args, **kwargs, **given)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"{where} cannot be called: {error}.") from None


def call(target: Any, tick: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call a function.

    Args:
        tick: passed to a function with a parameter `tick`.

    Raises:
        ScheduleError: the function returned a coroutine, so it did not run.
    """
    given = {"tick": tick} if _wants_tick(target, args, kwargs) else {}
    result = target(*args, **kwargs, **given)
    if inspect.iscoroutine(result):
        result.close()
        raise ScheduleError(f"{name_of(target)} did nothing: it gave back a coroutine. {_NOT_ASYNC}")


def _wants_tick(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function has a parameter `tick` that no other argument fills."""
    signature = inspect.signature(target)
    parameter = signature.parameters.get("tick")
    if parameter is None or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return False
    said = {**getattr(target, "keywords", {}), **kwargs}  # partial's
    return "tick" not in said and "tick" not in signature.bind_partial(*args).arguments


def for_dispatch(
    name: str, target: Any, payload: Mapping[str, Any] | None, options: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Check payload and options of a schedule; return both as JSON for a job class, and None and {} for a function.

    `check_payload` of the class may need a server, so each dispatch calls it, not this function.

    Raises:
        ScheduleError: the target cannot be called, or payload or options do not fit it.
    """
    refuse_unfit(name, target, (), {})
    where = f"Schedule {name!r}"
    if not is_job_class(target):
        if payload is not None or options:
            said = ", ".join([*(["payload"] if payload is not None else []), *sorted(options)])
            raise ScheduleError(
                f"{where}: {said}: only a job class takes these; a function dispatches its jobs itself."
            )
        return None, {}
    if payload is not None and not isinstance(payload, Mapping):
        raise ScheduleError(f"{where}: payload={payload!r:.60} is no dictionary, such as {{'table': 'flights'}}.")
    reserved = sorted(RESERVED_NAMES.intersection(payload or ()))
    if reserved:
        raise ScheduleError(f"{where}: {', '.join(reserved)} cannot be in a payload; the name is kept for options.")
    unfit = sorted(set(options) - set(SPOKEN_OPTIONS))
    if unfit:
        known = ", ".join(sorted(SPOKEN_OPTIONS))
        raise ScheduleError(f"{where} does not know {', '.join(unfit)}; there are {known}.")
    try:
        target.set(**options)
        encoded = target.payload_type.encode(payload or {}, target.job_type)
    except DispatchRefused as error:
        raise ScheduleError(f"{where}: {error}") from error
    for one in ("timeout", "expires_in"):
        if options.get(one) is not None:
            options = {**options, one: seconds(options[one], one)}
    return json.loads(encoded), options
