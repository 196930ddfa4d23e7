"""Threads for the blocking work of requests, with a bound on the wait for them."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """The work was not done in time. Work that has begun goes on in its thread; other work is dropped."""


class BoundedThreads:
    """A fixed number of threads, with a bounded wait for them.

    A connect to a frozen Postgres blocks a thread for as long as libpq waits, which is longer than a request does. Such
    threads are abandoned, but still count: there are never more than `size`, and work that waits for a thread is
    dropped in time. (anyio's limiter forgets abandoned threads: a server under load would accumulate them.)

    Args:
        name: prefix of the threads' names.
        size: number of threads.
        seconds: longest wait of a request, in the queue and for the work.
    """

    def __init__(self, name: str, size: int, seconds: float) -> None:
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=f"jobledger-{name}")
        self._seconds = seconds

    def deadline(self) -> float:
        """The deadline of a request that starts now, on the monotonic clock."""
        return time.monotonic() + self._seconds

    async def run(self, work: Callable[[], T], until: float | None = None) -> T:
        """Run work in a thread and return its result, or raise its exception.

        Args:
            work: a blocking function.
            until: an earlier `deadline()`, for work in several steps.

        Raises:
            TookTooLong: it was not done in time.
        """
        answer = asyncio.wrap_future(self._executor.submit(work))
        done, _ = await asyncio.wait([answer], timeout=(until or self.deadline()) - time.monotonic())
        if not done:
            answer.cancel()
            raise TookTooLong
        return answer.result()

    def close(self) -> None:
        """Start no further work, and do not wait for running work."""
        self._executor.shutdown(wait=False, cancel_futures=True)
