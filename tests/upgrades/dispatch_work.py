"""Dispatches one job after another until it is stopped; with the name of a file, one long job."""

import random
import signal
import sys

from work_of_both import Long, Noted, Retried

from jobledger import __version__

stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))

if len(sys.argv) > 1:
    Long.dispatch(dispatched_by=__version__, release_file=sys.argv[1])
else:
    while True:
        # At random: in a fixed order, the four deliveries of a round fell to the same four workers in each round.
        job = random.choice((Noted, Retried)).dispatch(dispatched_by=__version__)
        job.wait(timeout=300)
        if stopped:
            break
