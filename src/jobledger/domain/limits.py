"""Limits (jobs of a key that run at once) and rates (starts of a key within a window), in the whole fleet."""

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from jobledger.domain.options import Duration, seconds
from jobledger.domain.payload import to_json
from jobledger.domain.status import SlotKind
from jobledger.errors import ConfigurationError, OptionError

MOST_RUNNING: Final = 1_000_000
MOST_STARTS: Final = 1000
"""Highest `most` of a rate: the time of each start in the window is stored. Use a shorter window for more."""

LONGEST_KEY: Final = 255


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A limit or a rate as one job has it.

    Attributes:
        most: number of slots of the key.
        window_seconds: window of a rate.
    """

    kind: SlotKind
    key: str
    most: int
    window_seconds: float | None = None

    @property
    def held_by(self) -> str:
        """The value of `held_by` in the rows of jobs that wait for a slot."""
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True, slots=True)
class Key:
    """The template of the key of jobs that share slots; it may name payload fields, as in "import:{source}".

    Raises:
        ConfigurationError: the template is invalid.
    """

    template: str

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.template))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f'key={self.template!r}: say a text such as "import:{{source}}" ({error}).'
            ) from None
        fits = all(
            not spec and not conversion and (name is None or name.isidentifier()) for _, name, spec, conversion in parts
        )
        if not parts or not fits or len(self.template) > LONGEST_KEY:
            raise ConfigurationError(
                f'key={self.template!r}: say a text such as "import:{{source}}", with names of fields in braces.'
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """The payload fields that the template names."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None)

    def of(self, payload: Mapping[str, Any]) -> str:
        """The key for one payload.

        Raises:
            OptionError: the payload has no such field, or the key becomes too long.
        """
        missing = [name for name in self.fields if name not in payload]
        if missing:
            raise OptionError(f"key={self.template!r}: the payload has no {missing[0]!r}.")
        values = {name: payload[name] for name in self.fields}
        words = {name: one if isinstance(one, str) else to_json(one, name, LONGEST_KEY) for name, one in values.items()}
        key = self.template.format(**words)
        if not 1 <= len(key) <= LONGEST_KEY:
            raise OptionError(f"key={self.template!r} becomes {len(key)} characters long: say 1 to {LONGEST_KEY}.")
        return key


@dataclass(frozen=True, slots=True, init=False)
class _Shared:
    """A number of slots that the jobs of a key share."""

    most: int
    key: Key | None

    def unknown_fields(self, known: Collection[str]) -> list[str]:
        """The fields in its key that are not among `known`; none if the class takes any payload."""
        return [name for name in self.key.fields if name not in known] if self.key is not None and known else []

    def _set(self, most: object, highest: int, key: str | None) -> None:
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= highest:
            raise ConfigurationError(f"{type(self).__name__}({most!r}): say a whole number from 1 to {highest}.")
        object.__setattr__(self, "most", most)
        object.__setattr__(self, "key", Key(key) if key is not None else None)

    def _key_of(self, job_type: str, payload: Mapping[str, Any]) -> str:
        return self.key.of(payload) if self.key is not None else job_type


@dataclass(frozen=True, slots=True, init=False)
class Limit(_Shared):
    """At most `most` jobs of a key run at once. The others are held in Postgres, in order, and block no worker.

    Args:
        most: highest number of running jobs, at least 1.
        key: jobs with the same key share its slots, whatever their classes. It may name fields of the payload, as in
            "import:{source}". Default: the job type.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(self, most: int, *, key: str | None = None) -> None:
        self._set(most, MOST_RUNNING, key)

    def of(self, job_type: str, payload: Mapping[str, Any]) -> AppliedLimit:
        """The limit of one job.

        Raises:
            OptionError: the payload lacks a field that the key names, or the key is too long.
        """
        return AppliedLimit(SlotKind.LIMIT, self._key_of(job_type, payload), self.most)


@dataclass(frozen=True, slots=True, init=False)
class Rate(_Shared):
    """At most `most` starts of jobs of a key within any window of length `per`; each attempt is a start.

    Args:
        most: highest number of starts, 1 to 1000.
        per: length of the window: seconds as a number, timedelta, or a text such as "1m".
        key: see `Limit`.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    per_seconds: float

    def __init__(self, most: int, *, per: Duration, key: str | None = None) -> None:
        try:
            per_seconds = seconds(per, "per")
        except OptionError as error:
            raise ConfigurationError(f"Rate: {error}") from None
        if per_seconds < 0.001:
            raise ConfigurationError(f"Rate(per={per!r}): say a time of at least a millisecond.")
        object.__setattr__(self, "per_seconds", per_seconds)
        self._set(most, MOST_STARTS, key)

    def of(self, job_type: str, payload: Mapping[str, Any]) -> AppliedLimit:
        """The rate of one job.

        Raises:
            OptionError: the payload lacks a field that the key names, or the key is too long.
        """
        return AppliedLimit(SlotKind.RATE, self._key_of(job_type, payload), self.most, self.per_seconds)
