"""The version stands in one place; what says more about it goes along."""

import re

from click.testing import CliRunner

from harness import REPOSITORY
from jobledger import Connections, __version__
from jobledger.cli import main
from jobledger.ledger.migrate import revisions
from jobledger.web.app import create_app

PLACES = ("pyproject.toml", "Dockerfile", "scheduler.Dockerfile", "docker-compose.yml", "README.md", "src", "deploy")


def sections(page: str, heading: str) -> list[str]:
    return re.findall(rf"^## {heading}", (REPOSITORY / page).read_text(), flags=re.MULTILINE)


def test_the_newest_changes_are_of_this_version() -> None:
    assert sections("CHANGELOG.md", r"(\S+)")[0] == __version__


def test_there_is_a_way_to_this_version() -> None:
    minor = ".".join(__version__.split(".")[:2])
    assert sections("UPGRADING.md", r"From \S+ to (\S+)")[0] == minor
    assert f"{revisions()[0]}" in (REPOSITORY / "UPGRADING.md").read_text()


def test_whoever_asks_hears_the_same(connections: Connections) -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"jobledger, version {__version__}\n"
    assert create_app(connections).openapi()["info"]["version"] == __version__


def test_no_other_file_repeats_it() -> None:
    roots = [REPOSITORY / place for place in PLACES]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))]
    texts = {
        path: path.read_text()
        for path in files
        if path.suffix in {".py", ".toml", ".yml", ".md", ".Dockerfile", ""} and path.is_file()
    }
    said = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    assert [path.name for path, text in texts.items() if said.search(text)] == ["__init__.py"]
