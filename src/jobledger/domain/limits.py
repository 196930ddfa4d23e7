"""How many jobs may run at once, and how many may start within a time, in the whole fleet."""

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
"""Of a rate: the moment of each start within the window is kept. Say a shorter window for more."""

LONGEST_KEY: Final = 255


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A limit or a rate as one job has it.

    Attributes:
        most: slots of the key in all.
        window_seconds: of a rate: within this time.
    """

    kind: SlotKind
    key: str
    most: int
    window_seconds: float | None = None

    @property
    def held_by(self) -> str:
        """What the rows say that wait for it."""
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True, slots=True)
class Key:
    """Which jobs share slots: a text that may name fields of the payload, as in "import:{source}".

    Raises:
        ConfigurationError: it is no such text.
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
        """The fields that it names."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None)

    def of(self, payload: Mapping[str, Any]) -> str:
        """The key of one job.

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
    """So many slots, which the jobs of a key share."""

    most: int
    key: Key | None

    def unknown_fields(self, known: Collection[str]) -> list[str]:
        """The fields that its key names and that are not among these; none of a class that takes any payload."""
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
    """At most so many jobs of a key run at once; the others wait in Postgres, in their order, and hold nobody up.

    Args:
        most: 1 for one at a time.
        key: jobs of the same key share its slots, whatever their classes; it may name fields of the payload, as in
            "import:{source}". The job type unless said.

    Raises:
        ConfigurationError: something of it makes no sense.
    """

    def __init__(self, most: int, *, key: str | None = None) -> None:
        self._set(most, MOST_RUNNING, key)

    def of(self, job_type: str, payload: Mapping[str, Any]) -> AppliedLimit:
        """What it means for one job.

        Raises:
            OptionError: the payload has no such key.
        """
        return AppliedLimit(SlotKind.LIMIT, self._key_of(job_type, payload), self.most)


@dataclass(frozen=True, slots=True, init=False)
class Rate(_Shared):
    """At most so many starts of jobs of a key within any such time; each attempt is a start.

    Args:
        most: starts, at most 1000.
        per: within this time: seconds, timedelta, or "1m".
        key: see `Limit`.

    Raises:
        ConfigurationError: something of it makes no sense.
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
        """What it means for one job.

        Raises:
            OptionError: the payload has no such key.
        """
        return AppliedLimit(SlotKind.RATE, self._key_of(job_type, payload), self.most, self.per_seconds)
