"""What failpoints cost that are not set: the time of one that is passed, and how many a job passes on its way.

The time of a place is held against a call of a function that does nothing, in turns and in one process. The places are
counted for a job without effects that is dispatched, claimed and completed in this process; that way is timed too, so
that the share of the places can be said. With stock workers, which fork for each job, the way is longer.

Usage: python benchmarks/failpoints.py [--calls 200000] [--rounds 15] [--jobs 200]
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from jobledger import configure, failpoints
from jobledger.embedded import EmbeddedServers
from jobledger.failpoints import VARIABLE, Failpoint
from jobledger.ledger.migrate import upgrade
from jobledger.worker import run_job
from noop import Noop


def main() -> None:
    """Measure, count, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=200)
    arguments = parser.parse_args()
    os.environ.pop(VARIABLE, None)
    logging.basicConfig(level=logging.WARNING)

    place, empty = nanoseconds(arguments.calls, arguments.rounds)
    print(f"a place that is not set   {place:7.0f} ns")
    print(f"an empty function         {empty:7.0f} ns")
    with tempfile.TemporaryDirectory() as directory, EmbeddedServers(Path(directory), persistent=False) as servers:
        connections = configure(database_url=servers.database_url, redis_url=servers.redis_url)
        upgrade(connections.engine)
        places = passed(way)
        took = statistics.median(seconds(way) for _ in range(arguments.jobs))
        connections.close()
    names = ", ".join(places)
    print(f"places of a job           {len(places):7} ({names})")
    print(f"the way of a job          {1e6 * took:7.0f} us, of which its places {len(places) * place / 1000:.1f} us,")
    print(f"                          {100 * len(places) * place / (1e9 * took):7.3f} %")


def nanoseconds(calls: int, rounds: int) -> tuple[float, float]:
    """The medians, of processor time: of a place that is not set, and of a function that does nothing."""
    timers = [
        timeit.Timer("f(x)", timer=time.process_time, globals={"f": f, "x": Failpoint.AFTER_CLAIM})
        for f in (failpoints.reach, nothing)
    ]
    times = [[1e9 * timer.timeit(calls) / calls for timer in timers] for _ in range(rounds)]
    place, empty = (statistics.median(column) for column in zip(*times, strict=True))
    return place, empty


def nothing(_: Failpoint) -> None:
    """What a place is held against."""


def way() -> None:
    """One job, from its dispatch to its end."""
    run_job(str(Noop.dispatch(number=1).id))


def passed(step: Callable[[], None]) -> list[Failpoint]:
    """The places that are passed, in order."""
    seen: list[Failpoint] = []
    with patch.object(failpoints, "_plan", seen.append):
        step()
    return seen


def seconds(step: Callable[[], None]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
