"""Threads for the blocking work of requests, and the longest that a request waits for them."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """The work was not done in time. What was begun goes on in its thread; what was not, never will be."""


class BoundedThreads:
    """A few threads, and a limit to the wait for them.

    A frozen Postgres holds up whoever connects for as long as libpq waits, which is longer than we do. Such threads are
    left behind, but they still count: there are never more than `size`, and what waits for one is dropped in
    time. (anyio's limiter forgets a thread when it is abandoned: a server under load would collect them.)

    Args:
        name: prefix of the threads' names.
        size: how many.
        seconds: the longest that anybody waits, in the queue and for the work.
    """

    def __init__(self, name: str, size: int, seconds: float) -> None:
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=f"jobledger-{name}")
        self._seconds = seconds

    def deadline(self) -> float:
        """When somebody who asks now will give up, on the monotonic clock."""
        return time.monotonic() + self._seconds

    async def run(self, work: Callable[[], T], until: float | None = None) -> T:
        """The result of the work, or what it raised.

        Args:
            work: what blocks.
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
        """Begin nothing more, and wait for nobody."""
        self._executor.shutdown(wait=False, cancel_futures=True)
