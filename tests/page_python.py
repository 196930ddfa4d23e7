"""Runs the Python blocks of one page, in one namespace, for `documents.PagePython`: blocks in, problems out, as JSON.

`value  # -> …` compares what an expression gives, or raises, with the comment; it may go on in lines that begin with
`#   `. `await` works at the top level.
"""

import ast
import asyncio
import contextlib
import importlib
import inspect
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

JOB_ID = re.compile(r"\b[0-9a-f]{4}…")
"""An id that is written short: in a command the newest job's, in what it prints any."""

_EXPECTED = re.compile(r"[ ]*#[ ]->[ ](.*)")
_MORE = re.compile(r"[ ]*#[ ]{4,}(.*)")


def agrees(wanted: str, got: str) -> bool:
    """Whether an output is as the page has it, however wide its spaces are; `…` stands for anything, also nothing, and
    so does an id that is written short."""
    parts = [re.escape(" ".join(part.split())) for part in JOB_ID.sub("…", wanted).split("…")]
    return re.fullmatch(".*".join(parts), " ".join(got.split())) is not None


def expected(lines: list[str], statement: ast.stmt) -> str | None:
    """What a statement should come to, by the comment behind it, or in the line after it."""
    at = (statement.end_lineno or 0) - 1
    found = _EXPECTED.match(lines[at].encode()[statement.end_col_offset or 0 :].decode())
    if found is None and at + 1 < len(lines):
        at += 1
        found = _EXPECTED.match(lines[at])
    if found is None:
        return None
    words = [found[1]]
    while at + 1 < len(lines) and (more := _MORE.match(lines[at + 1])):
        words.append(more[1])
        at += 1
    return " ".join(words)


def run(statement: ast.stmt, file: str, namespace: dict[str, Any]) -> Any:
    """Run one statement; the value if it is an expression."""
    tree: ast.AST = ast.Module([statement], [])
    mode = "exec"
    if isinstance(statement, ast.Expr):
        tree, mode = ast.Expression(statement.value), "eval"
    code = compile(tree, file, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)  # type: ignore[call-overload]
    value = eval(code, namespace)
    if code.co_flags & inspect.CO_COROUTINE:
        value = asyncio.run(value)
    return value


def run_block(file: str, line: int, source: str, namespace: dict[str, Any]) -> None:
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        wanted = expected(lines, statement)
        where = f"{Path(file).name}:{line + statement.lineno - 1}"
        ast.increment_lineno(statement, line - 1)
        if wanted is None:
            run(statement, file, namespace)
            continue
        try:
            value = run(statement, file, namespace)
            got = [str(value), repr(value)]
        except Exception as error:
            got = [f"{type(error).__name__}: {error}"]
        assert any(agrees(wanted, one) for one in got), f"{where}: should be {wanted}, and is {got[-1]}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # what a block prints is no answer
    namespace = vars(importlib.import_module(sys.argv[1])) if len(sys.argv) > 1 else {"__name__": "before"}
    for question in sys.stdin:
        asked = json.loads(question)
        problem = None
        try:
            run_block(asked["file"], asked["line"], asked["source"], namespace)
        except BaseException:
            problem = traceback.format_exc()
        answers.write(json.dumps(problem) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
