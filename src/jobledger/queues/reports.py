"""RQ's reports of failed jobs."""

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import redis

from jobledger.queues import keys

REPORT_LIMIT_BYTES: Final = 64 * 1024
MEASURING_SECONDS: Final = 2.0
"""The time that may pass between reading two clocks."""

TRACEBACK: Final = "Traceback (most recent call last):"


@dataclass(frozen=True, slots=True)
class Death:
    """RQ's report of a job that it calls failed.

    Attributes:
        worker: name of the RQ worker that reported it last.
        process_died: its work-horse died; otherwise it raised an error.
        report: RQ's words: of a traceback the line that names the error, otherwise the last line.
        age_seconds: since the report, by the clock of Redis. It may be more than the attempt has lasted, if Redis came
            back with older data: then the report is about an earlier attempt.
    """

    worker: str
    process_died: bool
    report: str
    age_seconds: float

    def is_about(self, worker: str, lasted_seconds: float) -> bool:
        """Whether this is about an attempt of this worker that has lasted for so long, not about an earlier one."""
        return self.worker == worker and self.age_seconds <= lasted_seconds + MEASURING_SECONDS


def reported_deaths(client: redis.Redis, job_ids: Iterable[UUID]) -> dict[UUID, Death]:
    """The reports of those of these jobs that RQ calls failed.

    Reads the hash and the newest entry of the results' stream: nothing is unpickled, and RQ's registries are not asked,
    because RQ changes them when it reads them.

    Raises:
        redis.RedisError: Redis is away.
    """
    ids = list(job_ids)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.time()
        for job_id in ids:
            pipeline.hget(keys.hash_of(job_id), "status")
            pipeline.xrevrange(keys.results_of(job_id), count=1)
        (seconds, microseconds), *answers = pipeline.execute()
    now = seconds + microseconds / 1_000_000
    deaths: dict[UUID, Death] = {}
    for job_id, status, entries in zip(ids, answers[0::2], answers[1::2], strict=True):
        if status == b"failed" and entries:
            entry_id, entry = entries[0]
            deaths[job_id] = _death(entry_id, entry, now)
    return deaths


def ended_well(client: redis.Redis, job_ids: Iterable[UUID]) -> set[UUID]:
    """Those of these jobs whose delivery RQ calls finished: a worker took it, and found nothing to claim.

    Raises:
        redis.RedisError: Redis is away.
    """
    ids = list(job_ids)
    with client.pipeline(transaction=False) as pipeline:
        for job_id in ids:
            pipeline.hget(keys.hash_of(job_id), "status")
        answers = pipeline.execute()
    return {job_id for job_id, status in zip(ids, answers, strict=True) if status == b"finished"}


def _death(entry_id: bytes, entry: Mapping[bytes, bytes], now: float) -> Death:
    # rq 3.0 results.py:308 packs the text so; the length is bounded because Redis is not trusted.
    try:
        packed = base64.b64decode(entry.get(b"exc_string", b""))
        text = zlib.decompressobj().decompress(packed, REPORT_LIMIT_BYTES).decode("utf-8", "replace").strip()
    except (ValueError, zlib.error):
        text = ""
    return Death(
        worker=entry.get(b"worker_name", b"").decode("utf-8", "replace"),
        process_died=text.startswith("Work-horse terminated unexpectedly"),
        report=_what_was_raised(text)[:1000],
        age_seconds=now - int(entry_id.partition(b"-")[0]) / 1000,  # the first part is Redis's time, XADD
    )


def _what_was_raised(text: str) -> str:
    """The line that names the error: an error of Postgres goes on with its hints, notes and other details."""
    lines = text.split("\n")
    begun = max((number for number, line in enumerate(lines) if line == TRACEBACK), default=len(lines))
    return next((line for line in lines[begun + 1 :] if line and not line.startswith(" ")), lines[-1])
