"""The processes of the system in a chaos run, and their supervisor: what systemd does with Restart=always."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from harness import REPOSITORY, TESTS, Process, eventually, leads_a_group
from history import History
from jobledger.process import die_with_parent
from load import QUEUES
from observer import children
from worker_checks import PATIENT

RESTART_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 0.1
STOP_SECONDS: Final = 3.0
READY: Final = {"worker": "Listening on", "scheduler": "Scheduler started", "api": "running on"}


class Child(Process):
    """A process that ends with the thread that started it, so that a killed run leaves nothing behind."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=TESTS,
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGKILL),
            )
        self.pid = self.popen.pid


@dataclass
class Slot:
    """One process that there is always to be.

    Attributes:
        exits: when it ended so far, with its exit codes.
        retired: nobody starts it again.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    process: Process | None = None
    ended_at: float | None = None
    exits: list[tuple[float, int]] = field(default_factory=list)
    retired: bool = False

    @property
    def role(self) -> str:
        return self.name.partition("-")[0]

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return self.process.pid if self.process is not None and self.ended_at is None else None


def next_step(slot: Slot, code: int | None, now: float) -> str:
    """What the supervisor has to do for a slot: "leave", "note its end" or "start". Pure.

    Args:
        code: exit code of its process; None while it runs, or if there was none yet.
        now: monotonic, in seconds.
    """
    if slot.process is not None and slot.ended_at is None:
        return "leave" if code is None else "note its end"
    if slot.retired:
        return "leave"
    if slot.ended_at is None:
        return "start"
    return "start" if now - slot.ended_at >= RESTART_SECONDS else "leave"


class Fleet:
    """Workers, schedulers and an API.

    Args:
        environment: what each of them gets.
        logs: a file for each slot.
        history: is told of every exit.
    """

    def __init__(self, environment: dict[str, str], logs: Path, history: History) -> None:
        path = os.pathsep.join(str(one) for one in (REPOSITORY / "src", TESTS, TESTS / "chaos", REPOSITORY))
        own = {name: value for name, value in os.environ.items() if not name.startswith(("JOBLEDGER_", "RQ_"))}
        ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
        self.environment = {**own, **ours, **environment}
        self.slots: list[Slot] = []
        self._logs = logs
        self._history = history
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def add_workers(self, number: int) -> None:
        """Stock ones and patient ones by turns."""
        rq = str(Path(sys.executable).with_name("rq"))
        for one in range(number):
            if one % 2:
                self._add(f"worker-{one}{PATIENT}", [sys.executable, "-m", "jobledger", "worker", *QUEUES])
            else:
                self._add(f"worker-{one}", [rq, "worker", "-c", "jobledger.rq_config", *QUEUES])

    def add_schedulers(self, number: int) -> None:
        for one in range(number):
            self._add(f"scheduler-{one}", [sys.executable, "-m", "jobledger", "scheduler"])

    def add_api(self, port: int) -> None:
        self._add("api-0", [sys.executable, "-m", "jobledger", "api", "--port", str(port)])

    def start(self, seconds: float = 180) -> None:
        """Start all, and wait until each says that it is ready."""
        self._thread.start()
        for slot in self.slots:
            eventually(lambda slot=slot: self._is_ready(slot), seconds, f"{slot.name} is ready")  # type: ignore[misc]

    def of(self, role: str) -> list[Slot]:
        """The slots of a role whose process lives."""
        return [slot for slot in self.slots if slot.role == role and slot.pid is not None]

    def horses(self) -> list[tuple[int, int]]:
        """Pids of work-horses, each with that of its worker."""
        return [
            (horse, worker.pid)
            for worker in self.of("worker")
            if worker.pid
            for horse in children(worker.pid)
            if leads_a_group(horse)
        ]

    def knows(self, pid: int) -> bool:
        """Whether a process is one of ours, or a child of one."""
        ours = {slot.pid for slot in self.slots}
        return pid in ours or any(pid in children(one) for one in ours if one is not None)

    def exits(self, role: str) -> int:
        """How often processes of a role have ended."""
        return sum(len(slot.exits) for slot in self.slots if slot.role == role)

    def retire(self, role: str) -> None:
        """End the processes of a role for good."""
        slots = [slot for slot in self.slots if slot.role == role]
        for slot in slots:
            slot.retired = True
            if slot.pid is not None:
                send(slot.pid, signal.SIGTERM)
        eventually(lambda: all(slot.pid is None for slot in slots), 60, f"the end of every {role}")

    def stop(self) -> None:
        """End all, with whatever they have started."""
        for slot in self.slots:
            slot.retired = True
            if slot.pid is not None:
                send_all([slot.pid, *children(slot.pid)], signal.SIGCONT)
                send(slot.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for slot in self.slots:
            if slot.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    slot.process.wait(max(0.1, deadline - time.monotonic()))
                slot.process.kill_tree()
        self._over.set()
        self._thread.join(10)

    def _add(self, name: str, command: list[str]) -> None:
        self.slots.append(Slot(name, command, dict(self.environment)))

    def _supervise(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for slot in self.slots:
                self._look_after(slot)

    def _look_after(self, slot: Slot) -> None:
        now = time.monotonic()
        code = slot.process.popen.poll() if slot.process is not None else None
        step = next_step(slot, code, now)
        if step == "note its end":
            pid, slot.ended_at = slot.pid, now
            slot.exits.append((now, code or 0))
            self._history.say("exited", name=slot.name, pid=pid, code=code)
        elif step == "start":
            slot.process = Child(slot.command, slot.environment, self._logs / f"{slot.name}.log")
            slot.ended_at = None

    def _is_ready(self, slot: Slot) -> bool:
        return slot.process is not None and READY[slot.role] in slot.process.output()


def send(pid: int, number: signal.Signals) -> bool:
    """Signal a process; False if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def send_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        send(pid, number)
