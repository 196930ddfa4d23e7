"""The rules of the project that no linter of its knows: layers, sizes, names, and models as the migrations are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from harness import REPOSITORY
from jobledger import Connections
from jobledger.ledger.models.columns import metadata

SOURCE = REPOSITORY / "src" / "jobledger"
MODULES = sorted(SOURCE.rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "core"}
GENERATED = {
    ".git",
    ".venv",
    ".jobledger",
    ".chaos",
    ".coverage",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "dist",
    "build",
}


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_imports_follow_the_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_has_a_name_that_says_nothing() -> None:
    parts = {part for path in MODULES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert not parts & NAMES_THAT_SAY_NOTHING


def test_no_file_holds_two_things() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: lines for path, lines in lengths.items() if lines > FILE_LINES}


def test_no_function_is_too_long_to_read_at_once() -> None:
    lengths = {
        f"{named(path)}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}


def _project_files() -> Iterator[Path]:
    """What belongs to the project, rather than to this checkout of it."""
    for path in REPOSITORY.iterdir():
        if path.name in GENERATED:
            continue
        yield from [path] if path.is_file() else path.rglob("*")


def test_what_an_error_of_the_database_says_is_read_in_one_place() -> None:
    words = ("pgcode", "sqlstate", "psycopg2.errors")
    knowing = {named(path) for path in MODULES if any(word in path.read_text() for word in words)}
    assert knowing == {"src/jobledger/connections/postgres.py"}


def test_no_file_names_a_place_on_this_machine() -> None:
    # One level alone, such as /app, may well be said of an image.
    places = [str(place).encode() for place in (REPOSITORY, Path.home()) if len(place.parts) > 2]
    texts = {path: path.read_bytes() for path in _project_files() if path.is_file() and "__pycache__" not in path.parts}
    assert not [named(path) for path, text in texts.items() if any(place in text for place in places)]


def test_the_migrations_make_what_the_models_say(connections: Connections) -> None:
    with connections.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_importing_jobledger_loads_neither_rq_nor_apscheduler_nor_the_worker() -> None:
    said = "import sys, jobledger; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.split()
    unwanted = ("rq", "apscheduler", "fastapi", "alembic", "jobledger.worker", "jobledger.schedules", "jobledger.web")
    assert [one for one in loaded if any(one == name or one.startswith(f"{name}.") for name in unwanted)] == []
