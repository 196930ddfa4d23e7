"""What limits cost those that have none, and those that have some: the drain of no-op jobs by stock workers.

Rounds of five kinds are interleaved in one run, on the same servers, with two stock workers and a scheduler each:

    alone       jobs without limits
    beside      the same while thousands of others wait for one slot, which a job has that runs for all of the round
    limited     as many jobs with a limit that always has room: each takes a slot and passes it on
    mixed       jobs without limits, while a third worker runs others of another queue, also without limits
    draining    the same, but the others have a limit of one: each gets its slot from the one before

The last two differ only by the limit of the others, so it is their ratio that says what running jobs with limits cost
the rest; only the jobs of the two workers are counted. A round counts only if the others were run all the time.

Usage: python benchmarks/limits.py [--jobs 400] [--rounds 5] [--waiting 2000]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from jobledger import BaseJob, Connections, JobHandle, configure
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from noop import Handed, Holder, LimitedNoop, Noop, Other, Waiting
from stock_worker import HERE, RQ, environment, measure, report

KINDS = ("alone", "beside", "limited", "mixed", "draining")
OTHERS: dict[str, type[BaseJob]] = {"mixed": Other, "draining": Handed}
WORKERS = 2
EARLY = 300  # others that may have ended before the two workers are there


def main() -> None:
    """Run the rounds and print the rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--waiting", type=int, default=2000)
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as directory, EmbeddedServers(Path(directory), persistent=False) as servers:
        connections = configure(database_url=servers.database_url, redis_url=servers.redis_url)
        upgrade(connections.engine)
        for number in range(arguments.rounds):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                rate = drain(connections, kind, arguments.jobs, arguments.waiting)
                rates[kind].append(rate)
                print(f"round {number + 1}  {kind:9} {rate:7.1f} jobs/s", flush=True)
        connections.close()
    report(rates, base="alone")
    report({kind: rates[kind] for kind in OTHERS}, base="mixed")


def drain(connections: Connections, kind: str, jobs: int, waiting: int) -> float:
    """The rate at which two workers run so many jobs, with the others of this kind of round beside them."""
    connections.redis.flushdb()
    with connections.transaction() as connection:
        connection.execute(sa.text("TRUNCATE job_statuses, job_limits, limit_keys CASCADE"))
    with processes(connections) as start:
        start(sys.executable, "-m", "jobledger", "scheduler")
        if kind == "beside":
            holder = Holder.dispatch()
            start(RQ, "worker", "--quiet", "-c", "jobledger.rq_config", "etl")
            wait_for(holder, "started")
            Waiting.dispatch_many([{}] * waiting)
        if kind in OTHERS:
            first, *_ = OTHERS[kind].dispatch_many([{"number": n} for n in range(2 * jobs + EARLY)])
            start(RQ, "worker", "--quiet", "-c", "jobledger.rq_config", "etl")
            wait_for(first, "completed")
        job_class: type[BaseJob] = LimitedNoop if kind == "limited" else Noop
        job_class.dispatch_many([{"number": n} for n in range(jobs)])
        for _ in range(WORKERS):
            start(RQ, "worker", "--quiet", "-c", "jobledger.rq_config", "default")
        rate = measure(connections.redis, jobs)
    check(connections, kind, jobs, waiting)
    return rate


@contextmanager
def processes(connections: Connections) -> Iterator[Callable[..., None]]:
    """Start processes that end with this."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        yield lambda *command: running.append(subprocess.Popen(command, env=environment(connections), cwd=HERE))
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def wait_for(job: JobHandle, status: str) -> None:
    """Until the worker of the others is there."""
    deadline = time.monotonic() + 30
    while job.refresh().status != status:
        if time.monotonic() > deadline:
            raise SystemExit(f"no worker took the first of the others: it is not {status}")
        time.sleep(0.05)


def check(connections: Connections, kind: str, jobs: int, waiting: int) -> None:
    """A rate counts only if the right ones ran, and the others were held, or were run, all the time."""
    counts = {
        "done": "job_type IN ('Noop', 'LimitedNoop') AND status = 'completed' AND attempt = 1",
        "waiting": "held_by = 'limit:Waiting' AND attempt = 0",
        "others left": "job_type IN ('Other', 'Handed') AND status IN ('queued', 'started')",
    }
    with connections.transaction() as connection:
        found = {
            name: connection.execute(sa.text(f"SELECT count(*) FROM job_statuses WHERE {condition}")).scalar_one()
            for name, condition in counts.items()
        }
    if (found["done"], found["waiting"]) != (jobs, waiting if kind == "beside" else 0):
        raise SystemExit(f"{kind}: {found} of {jobs} jobs, and {waiting} that were to wait")
    if (found["others left"] > 0) != (kind in OTHERS):
        raise SystemExit(f"{kind}: the others had ended before the round did: {found}")


if __name__ == "__main__":
    main()
