"""How much of bare RQ's speed is left when every state is in Postgres: the drain of no-op jobs by stock workers.

Rounds of the kinds are interleaved in one run, on the same servers, with two `rq worker high default low etl` each:

    bare        RQ alone, no jobledger: the function is imported by each work-horse
    mirrored    `-c jobledger.rq_config`: every job queued, started and completed in Postgres
    unloaded    mirrored, but without the configuration: each work-horse imports the job modules itself
    libraries   bare, in workers that have imported SQLAlchemy, pydantic, psycopg2 and structlog: their memory alone
    sketch      bare, and each job claims and finishes a row by itself: psycopg2 only, a short connection, two commits
    least       sketch, on a prepared connection that the worker's parent keeps: what no ledger can be faster than

Usage: python benchmarks/stock_worker.py [--jobs 400] [--rounds 5] [--workers 2] [--kinds bare,mirrored]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import redis
import sqlalchemy as sa
from rq import Queue

import sketch
from jobledger import Connections, configure
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from noop import Noop

HERE = Path(__file__).resolve().parent
QUEUES = ("high", "default", "low", "etl")
CONFIGURATIONS = {
    "bare": None,
    "mirrored": "jobledger.rq_config",
    "unloaded": None,
    "libraries": "libraries",
    "sketch": "sketch",
    "least": "least",
}
KINDS = tuple(CONFIGURATIONS)
OF_RQ_ALONE = ("bare", "libraries")
SKETCHES = ("sketch", "least")
RQ = str(Path(sys.executable).parent / "rq")


def main() -> None:
    """Run the rounds and print the rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as directory, EmbeddedServers(Path(directory), persistent=False) as servers:
        connections = configure(database_url=servers.database_url, redis_url=servers.redis_url)
        upgrade(connections.engine)
        for number in range(arguments.rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                rate = drain(kind, connections, arguments.jobs, arguments.workers)
                rates[kind].append(rate)
                print(f"round {number + 1}  {kind:9} {rate:7.1f} jobs/s", flush=True)
        connections.close()
    report(rates)


def drain(kind: str, connections: Connections, jobs: int, workers: int) -> float:
    """Fill the default queue, let the workers empty it; jobs/s between 10 % and 100 % of them."""
    connections.redis.flushdb()
    fill(kind, connections, jobs)
    configuration = CONFIGURATIONS[kind]
    command = [RQ, "worker", "--quiet", *(["-c", configuration] if configuration else []), *QUEUES]
    running = [subprocess.Popen(command, env=environment(connections), cwd=HERE) for _ in range(workers)]
    try:
        return measure(connections.redis, jobs)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        if kind not in OF_RQ_ALONE:
            check_ledger(connections, jobs, "sketched" if kind in SKETCHES else "job_statuses")


def fill(kind: str, connections: Connections, jobs: int) -> None:
    """Dispatch the jobs of a round."""
    if kind in OF_RQ_ALONE:
        enqueue_bare(connections, "bare.noop", range(jobs))
    elif kind in SKETCHES:
        ids = [str(uuid4()) for _ in range(jobs)]
        with connections.transaction() as connection:
            for statement in sketch.TABLE:
                connection.execute(sa.text(statement))
            connection.execute(sa.text("INSERT INTO sketched (id) VALUES (:id)"), [{"id": one} for one in ids])
        enqueue_bare(connections, "sketch.run", ids)
    else:
        Noop.dispatch_many([{"number": n} for n in range(jobs)])


def enqueue_bare(connections: Connections, function: str, arguments: Iterable[object]) -> None:
    """As users of RQ do it."""
    queue = Queue("default", connection=connections.redis)
    queue.enqueue_many([Queue.prepare_data(function, args=(one,), timeout=210) for one in arguments])


def environment(connections: Connections) -> dict[str, str]:
    """What the processes of a round are told."""
    settings = connections.settings
    return {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "RQ_REDIS_URL": settings.require_redis_url(),
        "JOBLEDGER_REDIS_URL": settings.require_redis_url(),
        "JOBLEDGER_DATABASE_URL": settings.require_database_url(),
        "JOBLEDGER_JOB_MODULES": "noop",
        "JOBLEDGER_LOG_LEVEL": "WARNING",
        "PYTHONDONTWRITEBYTECODE": "",  # a worker that compiles its modules has its memory in another order
    }


def measure(client: redis.Redis, jobs: int) -> float:
    """Wait for RQ's registry of finished jobs, which both kinds fill, to hold them all."""

    def finished() -> int:
        return int(client.zcard("rq:finished:default"))  # type: ignore[arg-type]

    while finished() < jobs // 10:
        time.sleep(0.002)
    first, since = finished(), time.perf_counter()
    while (last := finished()) < jobs:
        time.sleep(0.002)
    return (last - first) / (time.perf_counter() - since)


def check_ledger(connections: Connections, jobs: int, table: str) -> None:
    """A rate counts only if the ledger has every job completed, each by one attempt."""
    with connections.transaction() as connection:
        done = connection.execute(
            sa.text(f"SELECT count(*) FROM {table} WHERE status = 'completed' AND attempt = 1")
        ).scalar_one()
        connection.execute(sa.text(f"TRUNCATE {table} CASCADE"))
    if done != jobs:
        raise SystemExit(f"the ledger has {done} completed jobs instead of {jobs}")


def report(rates: dict[str, list[float]], base: str = "bare") -> None:
    """Medians, and the ratios to the round of the same number of one kind."""
    print()
    for kind, values in rates.items():
        spread = f"{min(values):.1f} to {max(values):.1f}"
        ratios = [value / bare for value, bare in zip(values, rates.get(base, []), strict=False)]
        print(f"{kind:9} median {statistics.median(values):7.1f} jobs/s ({spread}), {len(values)} rounds", end="")
        print(
            f"  ratio to {base} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            if ratios
            else ""
        )


if __name__ == "__main__":
    main()
