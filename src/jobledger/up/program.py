"""A command as a child process that leaves no processes behind."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from jobledger.process import die_with_parent
from jobledger.up.output import Output


class Program:
    """One command as a child process.

    It has its own session: Ctrl-C at the terminal reaches `up` only, which stops its children in order. The kernel
    kills it when `up` dies.

    Args:
        name: name in the output.
        command: the command to run.
        environment: its whole environment.
        output: receives its lines; None lets it inherit standard output and error.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Output | None
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the last start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._poll() is None

    @property
    def code(self) -> int | None:
        """Its exit code as in a shell: 128 and more for a signal. None before its end."""
        code = self._poll()
        return 128 - code if code is not None and code < 0 else code

    def start(self) -> None:
        """Start it, for the first time or again."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._output else None,
            stderr=subprocess.STDOUT if self._output else None,
            start_new_session=True,
            # Only the child itself can set its death signal.
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGKILL),
        )
        if self._output and self._process.stdout:
            self._output.attach(self.name, self._process.stdout)

    def ended(self) -> str | None:
        """How it ended; None if it runs."""
        code = self._poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def terminate(self) -> None:
        """Ask it to end; a stock worker finishes its running job first."""
        if self._process and self.is_running:
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all processes that it started."""
        if self._process and self.is_running:
            _kill_session(self._process.pid)
            self._process.wait()

    def _poll(self) -> int | None:
        """Its exit code. When it has ended, its session is killed at once: later, another process may have its pid."""
        if self._process is None:
            return None
        if self._process.returncode is None and self._process.poll() is not None:
            _kill_session(self._process.pid)
        return self._process.returncode


def _kill_session(session: int) -> None:
    """Kill all processes of a session. RQ's work-horses have a process group of their own, but no session."""
    killed: set[int] = set()
    while fresh := set(_members(session)) - killed:  # a killed process may have forked before
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= fresh


def _members(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)
