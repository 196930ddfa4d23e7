"""Checks that a worker can run a class, when it is defined or at the latest when it is dispatched.

Without them, a class that no worker can run would fail in each of its attempts.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

from jobledger.errors import JobDefinitionError, PayloadError

LONGEST_JOB_TYPE: Final = 200
"""The limit of the ledger's constraint."""

NO_PERFORM: Final = "has no _perform, so there is nothing to dispatch."

_CALLED: Final = ("run", "call_on_failed", "_running")
"""Methods of `BaseJob` that the worker calls, and that no class may override."""

_SAID_FOR_IT: Final = ("options", "payload_type", "has_on_failed", "not_a_job")
"""Attributes that the definition of a class sets."""


def abstract_methods(job_class: type[Any]) -> list[str]:
    """The abstract methods of a class, also without `abc.ABC`.

    `__abstractmethods__` is not yet set while the class is being defined.
    """
    marked = {name for one in job_class.__mro__ for name, value in vars(one).items() if _is_abstract(value)}
    return sorted(name for name in marked if _is_abstract(_static(job_class, name)))


def refuse_job_type(job_class: type[Any]) -> None:
    """Refuse an invalid `job_type`.

    Raises:
        JobDefinitionError: it is no text, or empty, too long, or not printable.
    """
    job_type = job_class.job_type
    if isinstance(job_type, str) and len(job_type) <= LONGEST_JOB_TYPE and job_type.strip() and job_type.isprintable():
        return
    said = f"{job_type!r:.60}" + ("…" if len(repr(job_type)) > 60 else "")
    raise JobDefinitionError(
        f"{job_class.__name__:.60}: job_type={said}: say a text of 1 to {LONGEST_JOB_TYPE} printable characters."
    )


def refuse_methods(job_class: type[Any], base: type[Any]) -> None:
    """Refuse methods that could not be called as jobledger calls them.

    Raises:
        JobDefinitionError: a method is of the wrong kind; the message names it and the right form.
    """
    name = job_class.__name__
    overridden = [one for one in _CALLED if _static(job_class, one) is not _static(base, one)]
    for attribute in (*overridden, *(one for one in _SAID_FOR_IT if one in vars(job_class))):
        raise JobDefinitionError(f"{name}.{attribute}: jobledger needs this name itself. Rename the attribute.")
    _refuse_unbound(name, _static(job_class, "_perform"))
    if _yields(job_class._perform):
        raise JobDefinitionError(
            f"{name}._perform would do nothing when it is called, because it yields: return a list, or dispatch a job "
            "for each part."
        )
    at_class = isinstance(_static(job_class, "on_failed"), classmethod | staticmethod)
    if not callable(job_class.on_failed) or not _takes(job_class.on_failed, 1 if at_class else 2):
        raise JobDefinitionError(f"{name}.on_failed cannot be called with the failure: say def on_failed(self, error).")
    if not isinstance(_static(job_class, "check_payload"), classmethod | staticmethod):
        raise JobDefinitionError(
            f"{name}.check_payload is called at the dispatch, when there is no job yet: say @classmethod before it."
        )
    if _yields(job_class.check_payload) or inspect.iscoroutinefunction(job_class.check_payload):
        raise JobDefinitionError(f"{name}.check_payload would check nothing when it is called: it is async, or yields.")


def refuse_check(job_class: type[Any], field_names: tuple[str, ...]) -> None:
    """Refuse a `check_payload` that cannot be called with the payloads of the class.

    Raises:
        JobDefinitionError: it lacks a parameter, or requires one that no payload has.
    """
    reason = _objection(job_class.check_payload, dict.fromkeys(field_names)) if field_names else None
    if reason is not None:
        raise JobDefinitionError(
            f"{job_class.__name__}.check_payload cannot be called with the parameters of _perform "
            f"({', '.join(field_names)}): {reason}."
        )


def refuse_constructor(job_class: Any) -> None:
    """Refuse a class that cannot be made without arguments; repeated at dispatch, because decorators may change it.

    Raises:
        JobDefinitionError: its `__init__` or `__new__` requires arguments.
    """
    if job_class.__init__ is object.__init__ and job_class.__new__ is object.__new__:
        return
    reason = _objection(job_class, {})
    if reason is not None:
        raise JobDefinitionError(
            f"{job_class.__name__} cannot be made without arguments, as a worker does ({reason}): what it needs "
            "belongs into the parameters of _perform."
        )


def ask_class(job_class: Any, payload: Mapping[str, Any]) -> None:
    """Call `check_payload`.

    Raises:
        PayloadError: it cannot be called with this payload.
        JobRefused: it refuses the payload.
    """
    check = job_class.check_payload
    try:
        check(**payload)
    except TypeError:
        reason = _objection(check, payload)
        if reason is None:
            raise  # the TypeError comes from its own code
        raise PayloadError(
            f"{job_class.job_type}: check_payload cannot be called with this payload: {reason}."
        ) from None


def _objection(function: Any, keywords: Mapping[str, Any]) -> str | None:
    """The reason why a function cannot be called with these keywords; None if it can."""
    underlying, receiver = getattr(function, "__func__", None), getattr(function, "__self__", None)
    try:
        if underlying is not None:  # to notice a keyword with the receiver's name
            inspect.signature(underlying).bind(receiver, **keywords)
        else:
            inspect.signature(function).bind(**keywords)
    except TypeError as error:
        return str(error)
    except ValueError:  # functions that are not written in Python may have no signature
        return None
    return None


def _takes(function: Any, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _refuse_unbound(name: str, perform: Any) -> None:
    """Refuse a `_perform` that would not be called with the job as its first argument."""
    kind = next((one.__name__ for one in (staticmethod, classmethod, property) if isinstance(perform, one)), None)
    if kind is None and (isinstance(perform, type) or not hasattr(type(perform), "__get__")):
        kind = type(perform).__name__
    if kind is not None:
        raise JobDefinitionError(
            f"{name}._perform is a {kind}, which is not called with the job: say def _perform(self, …)."
        )


def _yields(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _is_abstract(value: Any) -> bool:
    return getattr(value, "__isabstractmethod__", False) is True


def _static(job_class: type[Any], name: str) -> Any:
    return inspect.getattr_static(job_class, name, None)
