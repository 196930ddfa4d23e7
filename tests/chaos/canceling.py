"""Cancels jobs of a run, and tells the history what was answered."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from history import History
from jobledger import LedgerUnavailable
from jobledger.connections.default import Connections
from jobledger.control import Verdict, cancel
from jobledger.domain.status import JobStatus

PAUSE_SECONDS: Final = 0.5
"""After a cancel that was not answered, before the next one."""

CLOSE_SECONDS: Final = 30.0


def cancel_for_sure(
    connections: Connections, history: History, key: str, job_id: str, given_up: Callable[[], bool]
) -> None:
    """Cancel a job, again and again until there is an answer, or it is given up."""
    while not given_up():
        try:
            answer = cancel(connections, UUID(job_id), by="the chaos run")
        except LedgerUnavailable:
            time.sleep(PAUSE_SECONDS)
            continue
        done = answer.status is JobStatus.CANCELED  # also if it was an earlier try whose answer was lost
        history.say("canceled", key=key, id=job_id, done=done, requested=answer.verdict is Verdict.REQUESTED)
        return


class Stopper:
    """Cancels each job that is to be stopped, as soon as it has said that it runs.

    Args:
        connections: of the system, through the proxies.
        history: is told.
    """

    def __init__(self, connections: Connections, history: History) -> None:
        self._connections = connections
        self._history = history
        self._seen: set[str] = set()
        self._asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="stopper", daemon=True)
        self._thread.start()

    def hear(self, said: dict[str, Any]) -> None:
        """A job has said that it started. Each is canceled once: a request holds for all of its attempts."""
        if said["key"].startswith("stopped-") and said["id"] not in self._seen:
            self._seen.add(said["id"])
            self._asked.put(said)

    def close(self) -> None:
        self._closed = True
        self._asked.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while said := self._asked.get():
            cancel_for_sure(self._connections, self._history, said["key"], said["id"], lambda: self._closed)
