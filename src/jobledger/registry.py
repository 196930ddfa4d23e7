"""Job type -> job class. Classes register when they are defined; workers find them by the type in the row."""

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from jobledger.errors import ConfigurationError, JobDefinitionError, UnknownJobType


class Registry:
    """The job classes that are loaded in a process, by job type."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Any]] = {}

    def register(self, job_type: str, job_class: type[Any]) -> None:
        """Add a class.

        Raises:
            JobDefinitionError: another class has this type.
        """
        known = self._classes.get(job_type)
        if known is not None and _place(known) != _place(job_class):
            raise JobDefinitionError(
                f"Two job classes have the type {job_type!r}: {_place(known)} and {_place(job_class)}. "
                "Give one of them another `job_type`."
            )
        self._classes[job_type] = job_class

    def lookup(self, job_type: str) -> type[Any]:
        """The class of a type.

        Raises:
            UnknownJobType: no such class is loaded; the message names the loaded types.
        """
        try:
            return self._classes[job_type]
        except KeyError:
            known = ", ".join(sorted(self._classes)) or "none"
            raise UnknownJobType(
                f"No job of type {job_type!r} is loaded here (known: {known}). Is its module in JOBLEDGER_JOB_MODULES?"
            ) from None

    def __iter__(self) -> Iterator[type[Any]]:
        """The classes, in the order of their types."""
        return iter([self._classes[name] for name in sorted(self._classes)])

    def forget(self, job_type: str) -> None:
        """Drop a type; for tests that define a class anew."""
        self._classes.pop(job_type, None)


registry: Final = Registry()
"""The registry of this process. A class is added when it is defined."""


SHIPPED_JOBS: Final = "jobledger.jobs"
"""Loaded by name, because the classes that ship with jobledger are in a layer above this module."""


def load_job_modules(modules: Iterable[str]) -> None:
    """Import the modules that define jobs, and the jobs that ship with jobledger.

    Raises:
        ConfigurationError: a module cannot be imported; the error of the import is its cause.
    """
    for name in (SHIPPED_JOBS, *modules):
        try:
            importlib.import_module(name)
        except Exception as error:  # the import of a user's module may raise any exception
            raise ConfigurationError(
                f"JOBLEDGER_JOB_MODULES: {name!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def _place(job_class: type[Any]) -> str:
    return f"{job_class.__module__}.{job_class.__qualname__}"
