"""Unique jobs: which jobs of a class are equal, and what a dispatch does if an equal job exists."""

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Self

from jobledger.domain.options import Duration, seconds
from jobledger.domain.payload import fingerprint
from jobledger.errors import ConfigurationError, OptionError

OnConflict = Literal["existing", "replace", "error"]


@dataclass(frozen=True, slots=True, init=False)
class Unique:
    """Allow one of several equal jobs of a class at a time.

    Args:
        *fields: names of payload fields; jobs are equal if these fields are. Default: the whole payload.
        during: "unfinished": no equal job is accepted until the first has ended, whatever its outcome.
        within: alternative to `during`: no equal job is accepted for this long after the first was dispatched; seconds
            as a number, timedelta, or a text such as "1h".
        on_conflict: the fate of the second job: "existing" returns the first; "replace" copies payload, title, owner,
            timeout, priority, attempts, time and expiry of the second into the first, if that has not started;
            "error" raises `AlreadyDispatched`, except in a schedule's tick, where the first is returned.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    fields: tuple[str, ...]
    within_seconds: float | None
    on_conflict: OnConflict

    def __init__(
        self,
        *fields: str,
        during: Literal["unfinished"] | None = None,
        within: Duration | None = None,
        on_conflict: OnConflict = "existing",
    ) -> None:
        if not all(isinstance(one, str) and one for one in fields) or len(set(fields)) < len(fields):
            raise ConfigurationError(f"Unique{fields!r}: say the names of fields, each once.")
        if during not in (None, "unfinished") or (during is not None and within is not None):
            raise ConfigurationError(
                f"Unique(during={during!r}, within={within!r}): say during='unfinished' or within."
            )
        if on_conflict not in ("existing", "replace", "error"):
            raise ConfigurationError(f"Unique(on_conflict={on_conflict!r}): say 'existing', 'replace' or 'error'.")
        try:
            within_seconds = seconds(within, "within") if within is not None else None
        except OptionError as error:
            raise ConfigurationError(f"Unique: {error}") from None
        if within_seconds == 0:
            raise ConfigurationError("Unique(within=0): say for how long.")
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "within_seconds", within_seconds)
        object.__setattr__(self, "on_conflict", on_conflict)

    def giving_back(self) -> Self:
        """A copy with `on_conflict="existing"`."""
        same = copy(self)
        object.__setattr__(same, "on_conflict", "existing")
        return same

    def unknown_fields(self, known: Collection[str]) -> list[str]:
        """The fields that it names and that are not among `known`; none if the class takes any payload."""
        return [name for name in self.fields if name not in known] if known else []

    def key(self, job_type: str, payload: Mapping[str, Any]) -> str:
        """The key that equal jobs share."""
        chosen = {name: payload.get(name) for name in self.fields} if self.fields else dict(payload)
        return f"{job_type}:{fingerprint(chosen)}"
