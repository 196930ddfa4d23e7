"""Hears what jobs say of themselves, outside of the system under test, and sees which processes there are."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from history import History

LONGEST_DATAGRAM = 65536
SILENCE_SECONDS = 0.05


class Observer:
    """A datagram socket and a thread that writes down what comes.

    Args:
        path: of the socket; at most 100 characters, says the kernel.
        history: where it goes.
    """

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self.returned = 0
        """How many runs of healthy jobs have come to their end."""
        self.running: dict[int, dict[str, Any]] = {}
        """What each process said when it started the job that it has not ended."""
        self.on_start: Callable[[dict[str, Any]], None] = lambda _: None
        """Is told of each start, once it is written down."""
        self._history = history
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, name="observer", daemon=True)
        self._thread.start()

    def job_of(self, pid: int) -> dict[str, Any] | None:
        """What this process runs, if it has said so."""
        return self.running.get(pid)

    def process_of(self, key: str) -> dict[str, Any] | None:
        """What the process said that runs this job of the load now; None if there is none."""
        return next((said for said in list(self.running.values()) if said["key"] == key), None)

    def jobs_of(self, pids: list[int]) -> list[str]:
        """Ids of the jobs that these frozen processes run. All that they said is heard first, and then forgotten."""
        time.sleep(SILENCE_SECONDS)  # the kernel has it already; our thread reads it in that time
        said = [self.running.pop(pid, None) for pid in pids]
        return [one["id"] for one in said if one is not None]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.sendto(b"", str(self.path))
        self._thread.join(10)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _listen(self) -> None:
        while datagram := self._socket.recv(LONGEST_DATAGRAM):
            self._hear(json.loads(datagram))

    def _hear(self, said: dict[str, Any]) -> None:
        if said["event"] == "started":
            self.running[said["pid"]] = said
        else:
            self.running.pop(said["pid"], None)
            self.returned += said["how"] == "returned" and not said["key"].startswith("poison")
        event = said.pop("event")
        self._history.say(event, **said)
        if event == "started":
            self.on_start(said)


def children(pid: int) -> list[int]:
    """The direct children of a process, cheaply; none if it is gone."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment_names(pid: int, needle: str) -> bool:
    """Whether a process was started with this text in its environment."""
    try:
        return needle.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def processes_with(needle: str, known: Callable[[int], bool]) -> list[dict[str, Any]]:
    """Living processes with this text in their environment that are not known; `known` says who belongs."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or (pid := int(entry.name)) == os.getpid():
            continue
        if environment_names(pid, needle) and not known(pid):
            try:
                cmdline = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.append({"pid": pid, "cmdline": cmdline})
    return found
