"""How each kind of code block in the documentation is run; CONTRIBUTING.md has the convention."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg2

from harness import TESTS, Process, Stack, eventually
from page_python import JOB_ID, agrees
from pages import Block, Command, blocks, commands
from preloaded import run_process, start_fresh, start_process
from unrun import NOT_RUN, check_configuration

COMMAND_SECONDS: Final = 60.0
READY_SECONDS: Final = 120.0

STARTED: Final = {
    "rq worker": "Listening on",
    "python -m jobledger worker": "Listening on",
    "python -m jobledger scheduler": "Scheduler started",
    "python -m jobledger api": "running on http",
    "python -m jobledger up": "Ready.",
}
"""Commands that stay: they are started, and waited for until they say this; the end of the page stops them."""


class Shell:
    """One bash session of a page: its variables and its directory go from command to command."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def run(self, command: str) -> str:
        """What a command prints.

        Raises:
            AssertionError: it ended with a code that is not 0.
        """
        words = _without_shell(command)
        if words:
            done = run_process(_found(words), self.environment, self.directory, COMMAND_SECONDS)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
            return done.stdout + done.stderr
        state = self.directory / ".shell-state"
        keep = f"{{ code=$?; env -0 >{shlex.quote(str(state))}; exit $code; }}"
        done = subprocess.run(
            ["bash", "-c", f"{command}\n{keep}"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        self.environment = dict(one.split("=", 1) for one in state.read_text().split("\0") if "=" in one)
        return done.stdout


def _without_shell(command: str) -> list[str] | None:
    """The words of a command of ours in which nothing is for a shell to do."""
    words = shlex.split(command)
    return words if words[:3] == ["python", "-m", "jobledger"] and not set(command) & set("|&;<>$`*?~(\n") else None


def _found(words: list[str]) -> list[str]:
    """A command as a shell finds it whose path begins with our environment."""
    own = Path(sys.executable).parent / words[0]
    return [sys.executable if words[0] == "python" else str(own) if own.exists() else words[0], *words[1:]]


class PagePython:
    """The interpreter of a page's Python blocks: `page_python.py` in a process of its own."""

    def __init__(self, directory: Path, environment: dict[str, str], module: str | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "page_python.py"), *([module] if module else [])],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, block: Block) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"file": str(block.page), "line": block.line, "source": block.text}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{block.place}: the interpreter is gone"
        problem = json.loads(answer)
        assert problem is None, problem

    def close(self) -> None:
        self._process.communicate(timeout=COMMAND_SECONDS)


class RunningPage:
    """One page that is being run: its blocks share a directory, a shell, an interpreter and servers."""

    MODULE = "myapp.jobs"

    def __init__(self, page: Path, directory: Path, environment: dict[str, str], system: Stack) -> None:
        self.page = page
        self.directory = directory
        self.blocks = blocks(page)
        self.api_url = ""
        self._system = system
        self._python: PagePython | None = None
        self._starting: list[tuple[Process, str]] = []
        self.shell = Shell(directory, {**_bare_environment(directory), **environment})
        definitions = [block.text for block in self.blocks if block.defines]
        asks_for_command_lines = any("jobledger health" in block.text for block in self.blocks)
        self._start_process = start_fresh if asks_for_command_lines else start_process
        self._defines_schedules = any("@schedule" in text for text in definitions)
        if definitions:
            file = directory / "myapp" / "jobs.py"
            file.parent.mkdir()
            file.write_text("\n\n".join(definitions))
            self.shell.environment["JOBLEDGER_JOB_MODULES"] = self.MODULE

    def run(self, block: Block) -> None:
        """Run one block, as its language demands."""
        LANGUAGES[block.language](self, block)

    def close(self) -> None:
        if self._python is not None:
            self._python.close()

    def run_python(self, block: Block) -> None:
        """Definitions stand in the page's module already."""
        if block.is_before:
            alone = PagePython(self.directory, self.shell.environment, None)
            try:
                alone.run(block)
            finally:
                alone.close()
            return
        if block.defines:
            return
        if self._python is None:
            module = self.MODULE if (self.directory / "myapp").exists() else None
            self._python = PagePython(self.directory, self.shell.environment, module)
        self._python.run(block)

    def run_console(self, block: Block) -> None:
        found = list(commands(block.text))
        assert found, f"{block.place}: a console block without a command"
        for command in found:
            self._run_command(command, block)
        self._wait_for_started()

    def _run_command(self, command: Command, block: Block) -> None:
        words = command.words
        check = NOT_RUN.get(words[0]) if words else None
        if check is not None:
            problem = check(words)
            assert problem is None, f"{block.place}: $ {command.text}\n{problem}"
            return
        text = JOB_ID.sub(lambda _: self._newest_job(), command.text)
        ready = next((ready for name, ready in STARTED.items() if " ".join(words).startswith(name)), None)
        if ready is not None and "--burst" not in words and "--help" not in words:
            self._start(words, ready)
            return
        self._wait_for_started()
        got = self._answer(shlex.split(text), command.output) if words[:1] == ["curl"] else self.shell.run(text)
        assert not command.output or agrees(command.output, got), (
            f"{block.place}: $ {command.text}\nshould print\n{command.output}\nand prints\n{got}"
        )

    def _start(self, words: list[str], ready: str) -> None:
        environment = self.shell.environment
        arguments = _found([*words, "--port", "0"] if words[-1] == "api" else words)
        log = self.directory / f"{len(self._system.processes)}.log"
        process = Process(arguments, environment, log, self.directory, self._start_process)
        self._system.processes.append(process)
        self._starting.append((process, ready))

    def _wait_for_started(self) -> None:
        """Commands that stay and follow each other start at the same time."""
        for process, ready in self._starting:
            self._wait_until_ready(process, ready)
        self._starting.clear()

    def _wait_until_ready(self, process: Process, ready: str) -> None:
        eventually(lambda: ready in process.output() or process.popen.poll() is not None, READY_SECONDS, ready)
        assert process.popen.poll() is None, process.output()
        if ready == STARTED["python -m jobledger scheduler"] and self._defines_schedules:
            eventually(lambda: self._query("SELECT 1 FROM schedules"), READY_SECONDS, "the schedules' rows")
        if found := re.search(r"(?:running on|API +)\s*(http://[\w.:]+)", process.output()):
            self.api_url = found[1]

    def _answer(self, words: list[str], wanted: str) -> str:
        """What the API answers; a look at a job is repeated until it is as far as the page says."""
        got = self._request(words)
        deadline = time.monotonic() + COMMAND_SECONDS
        while "-d" not in words and not agrees(wanted, got) and time.monotonic() < deadline:
            time.sleep(0.2)
            got = self._request(words)
        return got

    def _request(self, words: list[str]) -> str:
        """Do what a curl command says, of the API of this page, whose port is another one."""
        said = [(words[at], words[at + 1]) for at in range(1, len(words) - 1) if words[at] in ("-X", "-H", "-d")]
        options = dict(said)
        rest = [word for word in words[1:] if word not in {part for pair in said for part in pair} | {"-s", "\n"}]
        assert len(rest) == 1, f"curl: {rest}"
        assert self.api_url, "no API was started on this page"
        path = re.sub(r"^(http://)?localhost:8000", "", rest[0])
        headers = dict(value.split(": ", 1) for name, value in said if name == "-H")
        data = options["-d"].encode() if "-d" in options else None
        request = urllib.request.Request(self.api_url + path, data, headers, method=options.get("-X"))
        try:
            with urllib.request.urlopen(request, timeout=COMMAND_SECONDS) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def _newest_job(self) -> str:
        rows = self._query("SELECT id FROM job_statuses ORDER BY id DESC LIMIT 1")
        assert rows, "there is no job yet"
        return str(rows[0][0])

    def run_sql(self, block: Block) -> None:
        """Each statement must run, on the page's ledger."""
        for statement in block.text.split(";"):
            if statement.strip():
                self._query(statement)

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        url = self.shell.environment["JOBLEDGER_DATABASE_URL"].replace("+psycopg2", "")
        connection = psycopg2.connect(url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


def _bare_environment(directory: Path) -> dict[str, str]:
    """What a shell of somebody has who has installed jobledger and stands in the directory of an application."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ports = {"JOBLEDGER_API_PORT": "0", "JOBLEDGER_DASHBOARD_PORT": "0"}
    return {**os.environ, "PATH": path, "PYTHONPATH": str(directory), "PYTHONUNBUFFERED": "1", "USER": "you", **ports}


def _check(_: RunningPage, block: Block) -> None:
    check_configuration(block)


LANGUAGES: Final[dict[str, Callable[[RunningPage, Block], None]]] = {
    "python": RunningPage.run_python,
    "console": RunningPage.run_console,
    "sql": RunningPage.run_sql,
    "yaml": _check,
    "ini": _check,
    "dotenv": _check,
}
