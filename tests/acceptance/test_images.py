"""The Dockerfiles: linted, and what they promise to whoever runs the images."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import REPOSITORY

DOCKERFILES = ("Dockerfile", "scheduler.Dockerfile")
HADOLINT = Path(sys.executable).parent / "hadolint"


class Instruction(NamedTuple):
    keyword: str
    words: str


def instructions(name: str) -> list[Instruction]:
    """A Dockerfile without its comments and line breaks."""
    text = re.sub(r"^#.*\n", "", (REPOSITORY / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in text.splitlines() if line]


def last_stage(name: str) -> dict[str, str]:
    """What the image itself says; of what is said twice, the last."""
    everything = instructions(name)
    start = max(number for number, one in enumerate(everything) if one.keyword == "FROM")
    return {one.keyword: one.words for one in everything[start:]}


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, *DOCKERFILES], cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_is_no_mere_decoration(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python:latest\nCMD python -m jobledger api\n")

    done = subprocess.run([HADOLINT, wrong], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_the_images_differ_in_their_command_alone() -> None:
    own = {"EXPOSE", "HEALTHCHECK", "CMD"}
    shared = [[one for one in instructions(name) if one.keyword not in own] for name in DOCKERFILES]

    assert shared[0] == shared[1]


@pytest.mark.parametrize(
    ("name", "command", "health"),
    [
        ("Dockerfile", ["api", "--host", "0.0.0.0"], ["health", "api"]),
        ("scheduler.Dockerfile", ["scheduler"], ["health", "scheduler"]),
    ],
)
def test_what_the_image_runs(name: str, command: list[str], health: list[str]) -> None:
    stage = last_stage(name)
    health_command = stage["HEALTHCHECK"].partition("CMD ")[2]

    assert json.loads(stage["CMD"]) == ["python", "-m", "jobledger", *command]
    assert json.loads(health_command) == ["python", "-m", "jobledger", *health]
    assert stage["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_runs_as_nobody_special_and_builds_nothing(name: str) -> None:
    stage = last_stage(name)
    base = instructions(name)[0]

    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", stage["USER"])
    assert re.match(r"FROM python:3\.\d+\.\d+-slim-\w+ AS python$", " ".join(base))
    assert stage["FROM"].startswith("python AS ")
    assert not re.search(r"apt|pip|gcc", stage["RUN"])
    assert "--from=build" in stage["COPY"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_build_gets_the_files_that_it_copies(name: str) -> None:
    copies = [
        one.words.split()[:-1] for one in instructions(name) if one.keyword == "COPY" and "--from" not in one.words
    ]
    sources = {source for words in copies for source in words}
    let_in = re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)

    assert sources == set(let_in)
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


def test_the_lock_names_all_that_the_package_needs() -> None:
    """Else `pip check` fails the build of the image."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    locked = {
        canonicalize_name(one.name): next(iter(one.specifier)).version
        for one in (Requirement(line.rstrip("\\")) for line in lines if re.match(r"\w", line))
    }

    def is_locked(wanted: Requirement) -> bool:
        name = canonicalize_name(wanted.name)
        return name in locked and locked[name] in wanted.specifier

    assert [text for text in project["dependencies"] if not is_locked(Requirement(text))] == []
