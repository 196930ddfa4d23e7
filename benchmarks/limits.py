"""What limits cost those that have none, and those that have some: the drain of no-op jobs by stock workers.

Rounds of three kinds are interleaved in one run, on the same servers, with two stock workers and a scheduler each:

    alone       jobs without limits
    beside      the same while thousands of others wait for one slot, which a job has that runs for all of the round
    limited     as many jobs with a limit that always has room: each takes a slot and passes it on

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
from noop import Holder, LimitedNoop, Noop, Waiting
from stock_worker import HERE, RQ, environment, measure, report

KINDS = ("alone", "beside", "limited")
WORKERS = 2


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
                rate = drain(connections, kind, arguments.jobs, arguments.waiting if kind == "beside" else 0)
                rates[kind].append(rate)
                print(f"round {number + 1}  {kind:9} {rate:7.1f} jobs/s", flush=True)
        connections.close()
    report(rates, base="alone")


def drain(connections: Connections, kind: str, jobs: int, waiting: int) -> float:
    """The rate at which two workers run so many jobs while so many others wait for a slot."""
    connections.redis.flushdb()
    with connections.transaction() as connection:
        connection.execute(sa.text("TRUNCATE job_statuses, job_limits, limit_keys CASCADE"))
    with processes(connections) as start:
        start(sys.executable, "-m", "jobledger", "scheduler")
        if waiting:
            holder = Holder.dispatch()
            start(RQ, "worker", "--quiet", "-c", "jobledger.rq_config", "etl")
            wait_for(holder)
            Waiting.dispatch_many([{}] * waiting)
        job_class: type[BaseJob] = LimitedNoop if kind == "limited" else Noop
        job_class.dispatch_many([{"number": n} for n in range(jobs)])
        for _ in range(WORKERS):
            start(RQ, "worker", "--quiet", "-c", "jobledger.rq_config", "default")
        rate = measure(connections.redis, jobs)
    check(connections, jobs, waiting)
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


def wait_for(holder: JobHandle) -> None:
    """Until it runs, and so has the slot."""
    deadline = time.monotonic() + 30
    while holder.refresh().status != "started":
        if time.monotonic() > deadline:
            raise SystemExit("no worker took the job that is to have the slot")
        time.sleep(0.05)


def check(connections: Connections, jobs: int, waiting: int) -> None:
    """A rate counts only if the right ones ran, and the others were held all the time."""
    with connections.transaction() as connection:
        done = "SELECT count(*) FROM job_statuses WHERE status = 'completed' AND attempt = 1"
        held = "SELECT count(*) FROM job_statuses WHERE held_by = 'limit:Waiting' AND attempt = 0"
        found = [connection.execute(sa.text(statement)).scalar_one() for statement in (done, held)]
    if found != [jobs, waiting]:
        raise SystemExit(f"{found} jobs have completed, and were held, instead of {[jobs, waiting]}")


if __name__ == "__main__":
    main()
