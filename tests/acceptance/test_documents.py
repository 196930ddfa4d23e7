"""Every code block of README.md, CONTRIBUTING.md and docs/ works as it stands there; see CONTRIBUTING.md for how."""

import os
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import pages
from documents import LANGUAGES, RunningPage
from harness import REPOSITORY, Stack
from jobledger import Settings
from jobledger.schedules.parse import cron_expression
from jobledger.schedules.triggers import between
from pages import PAGES, Block
from unrun import NOT_RUN

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
OWN_SERVERS = {"docs/getting-started.md"}
"""Pages that begin with nothing: `up` brings the servers, and the page says where they are."""

OF_COMPOSE = set(re.findall(r"\w+", (REPOSITORY / "docker-compose.yml").read_text()))


def words_without_blocks(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", words_without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_every_block_works(
    name: str, environment: dict[str, str], system: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given = {} if name in OWN_SERVERS else {**environment, "REDIS_URL": environment["JOBLEDGER_REDIS_URL"]}
    given = {name: value for name, value in given.items() if name.endswith("_URL")}
    page = RunningPage(REPOSITORY / name, tmp_path_factory.mktemp("page"), given, system)
    try:
        for block in page.blocks:
            page.run(block)
    except Exception as error:
        error.add_note("\n".join(f"{one.log}:\n{one.output()[-3000:]}" for one in system.processes))
        raise
    finally:
        page.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_its_language(name: str) -> None:
    found = pages.blocks(REPOSITORY / name)

    assert [block.place for block in found if block.language not in LANGUAGES] == []
    assert (REPOSITORY / name).read_text().count("```") == 2 * len(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_one_that_there_is(name: str) -> None:
    named = set(re.findall(r"\bJOBLEDGER_\w*[A-Z]\b", (REPOSITORY / name).read_text()))
    known = {f"JOBLEDGER_{field.upper()}" for field in Settings.model_fields}

    assert named - known - OF_COMPOSE == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = REPOSITORY / name
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", words_without_blocks(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not target.startswith("https://") and (not file.exists() or (anchor and anchor not in anchors(file))):
            broken.append(target)

    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    index = (REPOSITORY / "docs" / "index.md").read_text()
    linked = {page.name for page in PAGES if page.parent.name == "docs"} - {"index.md"}

    assert {page for page in linked if f"({page})" not in index} == set()


def test_the_nights_when_the_clocks_change_are_as_described() -> None:
    page = (REPOSITORY / "docs" / "schedules.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \| (\S{10})[^|]*\| ([\d:, ]+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for cron, zone, day, times in rows:
        described = [datetime.fromisoformat(f"{day}T{one}+00:00") for one in times.split(", ")]
        since = datetime.fromisoformat(f"{day}T00:00+00:00") - timedelta(microseconds=1)
        trigger = cron_expression(cron, zone).trigger(since)

        assert list(between(trigger, since, since + timedelta(hours=3, seconds=1), 10)) == described


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "1 + 1  # -> 3"),
        ("python", "1 / 0"),
        ("python", "int('x')  # -> KeyError: …"),
        ("console", "$ echo one\ntwo"),
        ("console", "$ false"),
        ("console", "$ docker compose up nobody"),
        ("console", "$ docker compose exec api python -m jobledger jobs lost"),
        ("console", "$ systemctl start jobledger-nobody"),
        ("sql", "SELECT nothing FROM job_statuses"),
        ("yaml", "command: [python, -m, jobledger, scheduler, --often]"),
        ("yaml", "a: [b"),
        ("ini", "# deploy/systemd/jobledger-worker@.service\nKillMode=control-group"),
        ("ini", "[Service]\nKillMood=mixed"),
        ("dotenv", "just words"),
    ],
)
def test_a_wrong_block_is_found(
    language: str, text: str, environment: dict[str, str], system: Stack, tmp_path: Path
) -> None:
    page = RunningPage(REPOSITORY / "CHANGELOG.md", tmp_path, environment, system)
    try:
        with pytest.raises(Exception, match=r"\S"):
            page.run(Block(page.page, 1, language, text))
    finally:
        page.close()


def test_what_is_not_run_is_needed() -> None:
    """The list of exceptions holds nothing that no page says."""
    said = {
        command.words[0]
        for page in PAGES
        for block in pages.blocks(page)
        if block.language == "console"
        for command in pages.commands(block.text)
        if command.words
    }

    assert set(NOT_RUN) - said == set()
    assert os.access(REPOSITORY / "scripts" / "settings-page", os.X_OK)
