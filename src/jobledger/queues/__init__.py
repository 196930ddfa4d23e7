"""Wake-ups: RQ jobs that carry a ledger id, nothing else. With `worker/`, the only place that imports rq.

A wake-up is the fixed callable `jobledger.worker.run_job` with one text, the id of a row. Losing, doubling or flushing
wake-ups costs latency, never a job. RQ's own retry, schedule, dependency and callback features are not used.

keys         RQ's names of keys
wakes        pushing, and reading the lists
owner        the owner of the queues and of the wake-ups
window       how many wake-ups may be pushed
reports      RQ's reports of failed jobs
workers      RQ's records of its workers
stale        stale entries: finding and removing them
server       facts about the Redis server
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
