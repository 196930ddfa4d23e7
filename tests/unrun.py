"""What of the documentation cannot be run in a test, and what is looked at instead."""

import configparser
import itertools
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import yaml

from harness import REPOSITORY
from jobledger.cli import main
from pages import Block


def _in_compose(words: list[str]) -> str | None:
    if words[1:2] == ["build"]:
        files = [words[at + 1] for at, word in enumerate(words) if word in ("-f", "--file")]
        return next((f"no file {name}" for name in files if not (REPOSITORY / name).is_file()), None)
    if words[1:2] != ["compose"]:
        return "only `docker compose` and `docker build` can be checked"
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    scaled = [word.partition("=")[0] for before, word in itertools.pairwise(words) if before == "--scale"]
    rest = [word for word in words[3:] if not word.startswith("-") and word.partition("=")[0] not in scaled]
    named = [*scaled, *(rest[:1] if words[2] in ("exec", "run") else rest)]
    unknown = [name for name in named if name not in services]
    if unknown:
        return f"no service {unknown}"
    return command_problem(words[words.index(rest[0]) + 1 :]) if words[2] in ("exec", "run") else None


def _unit(name: str) -> Path:
    template = re.sub(r"@[^.]*", "@", name.removesuffix(".service"))
    return REPOSITORY / "deploy" / "systemd" / f"{template}.service"


def _in_units(words: list[str]) -> str | None:
    named = [word for word in words[1:] if word.startswith("jobledger") or word.endswith(".service")]
    if "daemon-reload" not in words and not named:
        return "it names no unit"
    return next((f"no unit {name}" for name in named if not _unit(name).is_file()), None)


def _in_repository(words: list[str]) -> str | None:
    """Every file of ours that is named is there."""
    named = [word for word in words if word.startswith(("deploy/", "scripts/", ".env."))]
    return next((f"no file {name}" for name in named if not list(REPOSITORY.glob(name))), None)


def _is_script(words: list[str]) -> str | None:
    return None if os.access(REPOSITORY / words[0], os.X_OK) else f"no script {words[0]}"


def _installs_us(words: list[str]) -> str | None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [word for word in words[1:] if not word.startswith("-")]
    ours = {".", *(f".[{extra}]" for extra in extras)}
    return None if named[:1] == ["install"] and set(named[1:]) <= ours else "only `pip install .` can be checked"


NOT_RUN: Final[dict[str, Callable[[list[str]], str | None]]] = {
    "docker": _in_compose,
    "systemctl": _in_units,
    "install": _in_repository,
    "useradd": _in_repository,
    "cp": _in_repository,
    "python3": lambda words: None if words[1:3] == ["-m", "venv"] else "only `python3 -m venv` can be checked",
    "/opt/jobledger/bin/pip": _installs_us,
    "pip": _installs_us,
    "scripts/demo": _is_script,
    "scripts/test": _is_script,
    "scripts/test-pythons": _is_script,
    "scripts/check": _is_script,
    "scripts/chaos": _is_script,
    "scripts/coverage": _is_script,
    "scripts/chaos-report": _is_script,
    "scripts/lock": _is_script,
    "scripts/settings-page": _is_script,
}
"""By their first word: what needs Docker, systemd, root, the internet or these tests themselves, and how it is
checked instead: what is wrong with the command's words, or None."""


def command_problem(words: list[str]) -> str | None:
    """What is wrong with a command line of ours that is not run: an unknown command, option or argument."""
    if words[1:3] != ["-m", "jobledger"]:
        return f"{words} is no command of ours"
    command: click.Command = main
    arguments = words[3:]
    try:
        context = click.Context(main)
        while isinstance(command, click.Group):
            name, found, arguments = command.resolve_command(context, arguments)
            assert found is not None, name
            command = found
        command.make_context(command.name, arguments)
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        return error.format_message()
    return None


# -- configuration that pages show


def _without_name(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]


def _quoted_file(block: Block) -> Path | None:
    """The file of ours that a block says it shows, in its first line."""
    first = block.text.partition("\n")[0].removeprefix("# ")
    file = REPOSITORY / first
    return file if file.is_file() else None


def check_configuration(block: Block) -> None:
    """A block that names a file of ours has lines of that file; any other is of the right form."""
    file = _quoted_file(block)
    if file is not None:
        lines = [line.strip() for line in file.read_text().splitlines()]
        missing = [line for line in _without_name(block) if line.strip() not in lines]
        assert not missing, f"{block.place}: {file.name} has no {missing}"
        return
    if block.language == "yaml":
        for document in yaml.safe_load_all(block.text):
            for command in _commands_in(document):
                assert command_problem(command) is None, f"{block.place}: {command}: {command_problem(command)}"
    elif block.language == "ini":
        parser = configparser.ConfigParser(interpolation=None, allow_no_value=False, strict=True)
        parser.read_string(block.text)
        known = "\n".join(unit.read_text() for unit in (REPOSITORY / "deploy" / "systemd").iterdir()).lower()
        keys = [key for section in parser.sections() for key in parser[section]]
        assert [key for key in keys if f"{key}=" not in known] == [], f"{block.place}: keys that no unit has"
    else:
        wrong = [line for line in _without_name(block) if not re.match(r"[A-Z_]+=\S*$", line)]
        assert not wrong, f"{block.place}: {wrong}"


def _commands_in(document: Any) -> Iterator[list[str]]:
    """Lists of words that are commands of ours, anywhere in a YAML document."""
    if isinstance(document, dict):
        for value in document.values():
            yield from _commands_in(value)
    elif isinstance(document, list):
        if "jobledger" in document:
            yield [str(word) for word in document]
        for value in document:
            yield from _commands_in(value)
