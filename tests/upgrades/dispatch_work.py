"""Dispatches one job after another until it is stopped; with the name of a file, one long job."""

import signal
import sys
from itertools import cycle

from work_of_both import Long, Noted, Retried

from jobledger import __version__

stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))

if len(sys.argv) > 1:
    Long.dispatch(dispatched_by=__version__, release_file=sys.argv[1])
else:
    for job_class in cycle((Noted, Retried)):
        job = job_class.dispatch(dispatched_by=__version__)
        job.wait(timeout=300)
        if stopped:
            break
