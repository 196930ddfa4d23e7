"""What happened in a run, in the order in which one process outside the system heard of it: `history.jsonl`.

One JSON object a line, with `at` (epoch seconds) and `event`:

    run_begun          fault, seed, jobs, settings, short, commit, started
    dispatch_invoked   key; effects (how many its completion leaves, 1 unless said), ends (how it may end, one or more
                       ways: "completed" unless said; "failed:crashed" is a status with its reason), limits (each with
                       kind, key, most, and for a rate its window in seconds), stops (canceled once it runs)
    dispatch_accepted  key, id; via ("http" if so)      dispatch_unknown, dispatch_refused   key, error
    started            key, id, attempt, pid, worker    ended   key, id, attempt, pid, how ("returned" or "raised")
    canceled           key, id, done, requested (it runs, and will be ended)
    retried            key, id (by a person)
    fault_begun        fault, number, detail, victims   fault_healed   fault, number
    orphan             pid (of a work-horse that lives a second after its worker's death)
    measured           name, seconds                    throughput   before, during (healthy jobs a second; "speed" if
                                                        the run is too short to judge them)
    ticks              missing, doubled, fired          pace   slowness (of the machine: 1 if idle)
    quiet, drained     timed_out if not every job had ended
    run_ended
"""

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

Event = dict[str, Any]

HISTORY: Final = "history.jsonl"
LEDGER: Final = "ledger.json"


class History:
    """Writes the history of one run; any thread may. A context manager.

    Args:
        directory: of the run; made if missing. What another run has left there is overwritten.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._lock = threading.Lock()
        self._file = (directory / HISTORY).open("w")

    def say(self, event: str, **fields: Any) -> None:
        """Write that this has happened just now."""
        with self._lock:
            self._file.write(json.dumps({"at": time.time(), "event": event, **fields}, default=str) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def read(directory: Path) -> tuple[list[Event], dict[str, Any]]:
    """The history of a run, and the ledger as it was at the end.

    Raises:
        ValueError: a file is missing or damaged; says which one, and where.
    """
    try:
        events = [json.loads(line) for line in (directory / HISTORY).read_text().splitlines()]
        return events, json.loads((directory / LEDGER).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{directory} does not hold a whole run: {error}") from error
