"""What runs in workers of bare RQ, for the negative control: a job with the same witnesses, and nothing of jobledger.

The worker classes only widen a window, so that it need not be hit by chance; they change nothing that RQ does.
"""

import json
import os
import socket
import time
from typing import Any, Final

import psycopg2
import rq
from rq.worker import Worker

RETRIES: Final = 3
WINDOW_SECONDS: Final = 3.0


def work(key: str, until: float = 0.0) -> str:
    """Say that it starts, work until a moment (epoch seconds), leave an effect, say that it ends."""
    job = rq.get_current_job()
    assert job is not None
    attempt = attempts_of(job)
    about = {"key": key, "id": job.id, "attempt": attempt, "pid": os.getpid()}
    say(event="started", **about, worker=os.environ["RQ_WORKER_ID"])
    time.sleep(max(0.0, until - time.time()))
    connection = psycopg2.connect(os.environ["BARE_DATABASE_URL"])
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO effects (job_id, key, attempt) VALUES (%s, %s, %s)", (job.id, key, attempt))
    connection.close()
    say(event="ended", **about, how="returned")
    return key


def attempts_of(job: rq.job.Job) -> int:
    """How many attempts RQ itself has counted, the one that runs now included."""
    return 1 + RETRIES - (job.retries_left or 0)


def say(**said: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(json.dumps(said).encode(), os.environ["CHAOS_OBSERVER"])


class PausesAfterPop(Worker):
    """Takes its time between the pop of a job and the record that it executes it."""

    def prepare_execution(self, job: rq.job.Job) -> Any:
        time.sleep(WINDOW_SECONDS)
        return super().prepare_execution(job)


class PausesAfterFork(Worker):
    """Its work-horses take their time before they begin."""

    def main_work_horse(self, job: rq.job.Job, queue: rq.Queue) -> None:
        time.sleep(WINDOW_SECONDS)
        super().main_work_horse(job, queue)
