"""Which jobs of a class are the same, and what becomes of a dispatch while there is one already."""

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
    """Of equal jobs of a class, one at a time.

    Args:
        *fields: jobs are equal if these fields of their payloads are; none for all of the payload.
        during: "unfinished": an equal job is refused until the first one has ended, however it ended.
        within: instead: until this has passed since the first one was dispatched; seconds, timedelta, or "1h".
        on_conflict: what becomes of the second one: "existing" gives back the first; "replace" puts the payload, title,
            owner, timeout, priority, attempts, time and expiry of the second into the first, if that has not started;
            "error" raises `AlreadyDispatched`, but in a schedule's fire time, where it gives back the first.

    Raises:
        ConfigurationError: something of it makes no sense.
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
        """The same, but that a second job gives back the first one."""
        same = copy(self)
        object.__setattr__(same, "on_conflict", "existing")
        return same

    def unknown_fields(self, known: Collection[str]) -> list[str]:
        """The fields that it names and that are not among these; none of a class that takes any payload."""
        return [name for name in self.fields if name not in known] if known else []

    def key(self, job_type: str, payload: Mapping[str, Any]) -> str:
        """What equal jobs have in common."""
        chosen = {name: payload.get(name) for name in self.fields} if self.fields else dict(payload)
        return f"{job_type}:{fingerprint(chosen)}"
