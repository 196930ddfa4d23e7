"""Python processes that import no libraries: forks of an interpreter that has them, one such in each test process.

An interpreter that imports RQ, SQLAlchemy and FastAPI takes a second of a core, a fork takes 20 ms, and the tests start
hundreds. A forked process has a session, an environment, a directory and descriptors of its own, and imports jobledger
itself. It has the command line of the first interpreter, and its `-W`, locale and hash seed: `start_fresh` is for tests
that need others.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

LIBRARIES: Final = (
    "rq.cli.cli",
    "rq.worker",
    "rq.scheduler",
    "redis.asyncio",
    "sqlalchemy.orm",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "psycopg2.extras",
    "psycopg2.sql",
    "alembic.command",
    "pydantic_settings",
    "structlog",
    "uuid6",
    "click",
    "rich.console",
    "rich.table",
    "rich.progress",
    "fastapi",
    "uvicorn",
    "uvicorn.loops.asyncio",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.h11_impl",
    "apscheduler.schedulers.background",
    "cronsim",
    "ctypes",
    "csv",
    "gzip",
)

LONGEST_REQUEST: Final = 1 << 20
LOOK_SECONDS: Final = 0.01
SET_BY_START: Final = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
"""Of the variables that an interpreter reads as it starts, those that a forked one follows all the same."""


class Forked:
    """A forked process, with the methods of a `subprocess.Popen`."""

    def __init__(self, parent: "Preloaded", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._parent.ask({"reap": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + timeout if timeout is not None else None
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(LOOK_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until it is polled it has its pid, dead or alive
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that has imported the libraries. It ends with the one that started it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._environment = interpreter_environment(os.environ)
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={name: value for name, value in os.environ.items() if name not in SET_BY_START},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        atexit.register(self.close)

    def fits(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a command is one of our interpreter's, which would start with the environment that it has."""
        ours = (
            command[0] == sys.executable and len(command) > 1 and (command[1] in ("-m", "-c") or command[1][0] != "-")
        )
        is_script = Path(command[0]).parent == Path(sys.executable).parent and Path(command[0]).name == "rq"
        return (ours or is_script) and interpreter_environment(environment) == self._environment

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, output: int, errors: int
    ) -> Forked:
        """Fork a process for a command that fits."""
        arguments = command[1:] if command[0] == sys.executable else command
        request = {"arguments": list(arguments), "environment": dict(environment), "directory": str(directory)}
        return Forked(self, int(self.ask(request, [output, errors])))

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            answer = self._socket.recv(LONGEST_REQUEST)
        assert answer, "the process with the libraries has ended"
        return json.loads(answer)

    def close(self) -> None:
        if os.getpid() == self._owner:
            self._socket.close()
            self._process.wait(10)


@functools.cache
def preloaded() -> Preloaded:
    """The one of this test process."""
    return Preloaded()


def start_process(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, output: int, errors: int
) -> "Forked | subprocess.Popen[bytes]":
    """A process in a session of its own: forked if it can be.

    Args:
        output: descriptor for its standard output.
        errors: the same for its errors.
    """
    if not preloaded().fits(command, environment):
        return start_fresh(command, environment, directory, output, errors)
    return preloaded().start(command, environment, directory, output, errors)


def run_process(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, seconds: float
) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end, as `subprocess.run` does.

    Raises:
        subprocess.TimeoutExpired: it was killed after so many seconds.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = start_process(command, environment, directory, output.fileno(), errors.fileno())
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(command, code, output.read(), errors.read())


def start_fresh(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, output: int, errors: int
) -> "subprocess.Popen[bytes]":
    """The same, by an interpreter that imports everything anew."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        cwd=directory,
    )


def interpreter_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads of its environment as it starts."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(("PYTHON", "LC_", "LD_", "LANG", "COVERAGE_")) and name not in SET_BY_START
    }


# -- in the process that has the libraries


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in forked processes alone, with their request."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 2)
        if not message:
            sys.exit(0)
        request = json.loads(message)
        if "reap" in request:
            pid, status = os.waitpid(request["reap"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                become(request, descriptors)
                return dict(request)
            for one in descriptors:
                os.close(one)
        connection.send(json.dumps(answer).encode())


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """All that `subprocess.Popen` and the start of an interpreter would have done."""
    os.setsid()
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    for number, one in enumerate(descriptors, 1):
        os.dup2(one, number)
        os.close(one)
    is_unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdout.reconfigure(write_through=is_unbuffered, line_buffering=False)  # type: ignore[union-attr]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    first = request["arguments"][0]
    place = request["directory"] if first == "-m" else "" if first == "-c" else str(Path(first).resolve().parent)
    named = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [place, *named, *sys.path[1:]]  # the first is the directory of this file


def run(arguments: list[str]) -> None:
    """Run a program, by the arguments of `python`."""
    how, *rest = arguments
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a forked process copies each page that it writes to
    run(serve(socket.socket(fileno=int(sys.argv[1])))["arguments"])
