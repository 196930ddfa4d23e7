"""How long it takes until all that waits is in Redis again after FLUSHALL, with one scheduler and no worker.

.venv/bin/python benchmarks/redis_lost.py --jobs 150000 --runs 3
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis
import sqlalchemy as sa

from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade

QUEUES = ("high", "default", "low", "etl")
FILL = """
INSERT INTO job_statuses (id, job_type, queue, payload, status, timeout_seconds, queued_at, pushed_at, push_count)
SELECT gen_random_uuid(), 'Echo', (CAST(:queues AS text[]))[1 + n % 4], '{}', 'queued', 600, now(), now(), 1
  FROM generate_series(1, :jobs) AS n
"""


def listed(client: redis.Redis) -> int:
    with client.pipeline(transaction=False) as pipeline:
        for name in QUEUES:
            pipeline.llen(f"rq:queue:{name}")
        return sum(pipeline.execute())


def until(client: redis.Redis, jobs: int) -> float:
    began = time.monotonic()
    while listed(client) < jobs:
        time.sleep(0.05)
    return time.monotonic() - began


def run(jobs: int) -> tuple[float, float]:
    """Seconds until all of them were pushed again, and the processor's seconds of the scheduler."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedServers(Path(directory)) as servers:
        engine = make_engine(servers.postgres.url, "benchmark")
        upgrade(engine)
        environment = {"JOBLEDGER_DATABASE_URL": servers.postgres.url, "JOBLEDGER_REDIS_URL": servers.redis.url}
        with engine.begin() as connection:
            connection.execute(sa.text(FILL), {"jobs": jobs, "queues": list(QUEUES)})
            connection.execute(sa.text("UPDATE job_statuses SET pushed_at = NULL"))
        engine.dispose()
        with redis.Redis.from_url(servers.redis.url) as client:
            scheduler = subprocess.Popen(
                [sys.executable, "-m", "jobledger", "scheduler"],
                env={**os.environ, **environment},
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            try:
                until(client, jobs)
                time.sleep(8)  # it has compared at least once
                client.flushall()
                seconds = until(client, jobs)
            finally:
                scheduler.terminate()
                _, _, usage = os.wait4(scheduler.pid, 0)
        return seconds, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=150_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for number in range(options.runs):
        seconds, cpu = run(options.jobs)
        rate = options.jobs / seconds
        print(f"run {number + 1}: {options.jobs} in {seconds:.1f} s, {rate:.0f}/s; scheduler's CPU {cpu:.1f} s")


if __name__ == "__main__":
    main()
