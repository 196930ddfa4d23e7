"""Wake-ups: RQ jobs that carry a ledger id, nothing else. With `worker/`, the only place that imports rq.

What crosses Redis is the fixed callable `jobledger.worker.run_job` and one text, the id of a row. Losing, doubling or
flushing any of it costs latency, never a job. RQ's own retry, schedule, dependency and callback features are not used.

keys         how RQ names what it keeps
wakes        pushing, and reading the lists
owner        whose the queues and the wake-ups are
window       how many may be pushed
reports      what RQ says of jobs that it calls failed
workers      what its workers say of themselves, and are told
leftovers    what lies about and should not
server       what the Redis server says of itself
"""

from jobledger.queues.keys import RUN_JOB
from jobledger.queues.owner import Owner, pushed_by_others
from jobledger.queues.reports import Death, ended_well, reported_deaths
from jobledger.queues.server import RedisFacts, facts, read_epoch, try_write
from jobledger.queues.stale import Begun, Slice, ours_of, read_begun, read_slice, remove, remove_begun, remove_doubles
from jobledger.queues.wakes import head, length, names, push, waiting
from jobledger.queues.window import Window, window_of
from jobledger.queues.workers import WorkerRecord, forget_current_job, put_back_workers, workers

__all__ = [
    "RUN_JOB",
    "Begun",
    "Death",
    "Owner",
    "RedisFacts",
    "Slice",
    "Window",
    "WorkerRecord",
    "ended_well",
    "facts",
    "forget_current_job",
    "head",
    "length",
    "names",
    "ours_of",
    "push",
    "pushed_by_others",
    "put_back_workers",
    "read_begun",
    "read_epoch",
    "read_slice",
    "remove",
    "remove_begun",
    "remove_doubles",
    "reported_deaths",
    "try_write",
    "waiting",
    "window_of",
    "workers",
]
