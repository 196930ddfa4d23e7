"""Makes docs/settings.md from `jobledger.settings.Settings`; a test compares."""

import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, Final

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from jobledger import Settings

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

_BEGINNING: Final = """# Settings

Every process reads its settings from the environment, or from a file `.env` in the directory where it starts; the
environment wins. Names begin with `JOBLEDGER_`. A value that makes no sense stops the process at its start, with a
message that names it; `python -m jobledger check` looks without starting anything.

This page is made from the code by `scripts/settings-page`.

| variable | default | values | meaning |
|---|---|---|---|
"""

_END: Final = """
Lists are separated by commas. Give all processes the same settings; the two URLs and `JOBLEDGER_JOB_MODULES` must be
the same.

In code, `jobledger.configure(lease_seconds=10)` sets single values over the environment, for the process that says so.

The variables without this prefix in `.env.example` are those of `docker-compose.yml`: see [deploying](deploying.md).
"""


def page() -> str:
    """The whole page."""
    return _BEGINNING + "".join(_row(name, field) for name, field in Settings.model_fields.items()) + _END


def _row(name: str, field: FieldInfo) -> str:
    return f"| `JOBLEDGER_{name.upper()}` | {_default(field.default)} | {_values(field)} | {field.description} |\n"


def _default(value: Any) -> str:
    if value is None or value in ("", ()):
        return "none"
    text = ",".join(value) if isinstance(value, tuple) else str(value.value if isinstance(value, Enum) else value)
    return f"`{text}`"


def _values(field: FieldInfo) -> str:
    """What may be said, in a few words."""
    kind: Any = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{one}`" for one in typing.get_args(kind))
    if kind in (int, float):
        return " ".join(["a whole number" if kind is int else "a number", *_bounds(field)])
    return {SecretStr: "a URL", Path: "a directory", str: "a text"}.get(kind, "a list")


def _bounds(field: FieldInfo) -> list[str]:
    words = []
    for bound in field.metadata:
        match bound:
            case Gt(gt=limit):
                words.append(f"above {limit}")
            case Ge(ge=limit):
                words.append(f"from {limit}")
            case Le(le=limit):
                words.append(f"to {limit}")
            case Lt(lt=limit):
                words.append(f"below {limit}")
    return words


if __name__ == "__main__":
    PAGE.write_text(page())
