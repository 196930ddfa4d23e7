"""What RQ keeps is read with single commands: RQ's own readers clean up, and run callbacks, while they read."""

import ast

import pytest

from harness import REPOSITORY

SOURCE = REPOSITORY / "src" / "jobledger"
MODULES = sorted(SOURCE.rglob("*.py"))

CLEANS_UP = {
    "all",  # Worker.all, Queue.all
    "count",  # of registries
    "cleanup",
    "clean_registries",
    "clean_worker_registry",
    "fetch_job",
    "find_by_key",
    "get_job_count",
    "get_job_ids",
    "get_jobs",
    "requeue",
    "run_maintenance_tasks",
}


def names_of_rq(tree: ast.AST) -> set[str]:
    """What a module knows by names that come from rq."""
    return {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (node.module if isinstance(node, ast.ImportFrom) else alias.name or "").partition(".")[0] == "rq"  # type: ignore[union-attr]
    }


def calls(source: str) -> list[str]:
    """Calls of something of rq's that cleans up, as far as their words show it."""
    tree = ast.parse(source)
    if not names_of_rq(tree):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CLEANS_UP:
            found.append(ast.unparse(node))
    return found


def test_no_module_that_knows_rq_asks_its_registries() -> None:
    found = {str(path.relative_to(SOURCE)): calls(path.read_text()) for path in MODULES}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "line",
    [
        "Worker.all(connection=client)",
        "queue.started_job_registry.count",
        "Queue('low').failed_job_registry.get_job_ids()",
        "StartedJobRegistry('low').cleanup()",
    ],
)
def test_such_a_call_would_be_found(line: str) -> None:
    assert len(calls(f"from rq import Queue, Worker\n{line}\n")) == 1
