"""How slow the machine is, and waits that last as long as a number falls: other load on the machine fails no run."""

import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

WORK: Final = (sys.executable, "-I", "-S", "-c", "for _ in range(500_000): pass")
WORK_SECONDS: Final = 0.05
"""What the work takes at most where it has a core of its own."""

MOST: Final = 10.0
"""What is slower still is broken."""

FIRST_TIMES: Final = 5
PAUSE_SECONDS: Final = 3.0


def wait_down(look: Callable[[], int], still_seconds: float, pause: float = 0.5) -> int:
    """Wait until a number is 0, as long as it falls.

    Args:
        look: the number.
        still_seconds: after which it is given up: for so long it was no less than ever before.

    Returns:
        The number at last.
    """
    least, fell_at = math.inf, time.monotonic()
    while (now := look()) > 0:
        if now < least:
            least, fell_at = now, time.monotonic()
        elif time.monotonic() - fell_at > still_seconds:
            break
        time.sleep(pause)
    return now


class Pace:
    """Times the same small work again and again, in a process of its own. A context manager.

    Attributes:
        slowness_at_start: how many times as long as on an idle machine it took before anything else was started.
    """

    def __init__(self) -> None:
        self.slowness_at_start = slowness([timed() for _ in range(FIRST_TIMES)])
        self._seconds: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)

    @property
    def slowness(self) -> float:
        """The same of the whole time since then, at its slowest."""
        return max(self.slowness_at_start, slowness(self._seconds))

    def __enter__(self) -> "Pace":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PAUSE_SECONDS):
            self._seconds.append(timed())


def slowness(seconds: list[float]) -> float:
    """What nine of ten of these times keep, in the time of an idle machine; from 1 to `MOST`. Pure."""
    if len(seconds) < 2:
        return 1.0
    ninth = statistics.quantiles(seconds, n=10, method="inclusive")[-1]
    return round(min(max(1.0, ninth / WORK_SECONDS), MOST), 1)


def timed() -> float:
    begun = time.monotonic()
    subprocess.run(WORK, check=True)
    return time.monotonic() - begun
