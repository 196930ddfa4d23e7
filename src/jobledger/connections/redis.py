"""The Redis client that answers or fails within its deadline, and the circuit breaker of dispatches.

redis-py calls its retry policy around everything that it sends, so the breaker is one: a policy that never retries,
counts failures, and lets calls fail at once while the circuit is open.
"""

import re
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.retry import Retry as RedisRetry

T = TypeVar("T")

FAILURES: Final = 2
"""After so many in a row the circuit opens."""

OPEN_SECONDS: Final = 1.0
"""For so long calls fail at once; then one tries."""


class CircuitBreaker(Retry):
    """One per client, shared by its connections; safe for threads. It sends nothing twice."""

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)
        self._lock = threading.Lock()
        self._failures = 0
        self._opens_at = 0.0
        self._inside = threading.local()

    def __deepcopy__(self, _: Any) -> "CircuitBreaker":
        return self  # redis-py copies the policy for each connection; failures are counted for all of them

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *_: Any, **options: Any) -> T:
        """Call once, unless the circuit is open.

        Raises:
            redis.ConnectionError: the circuit is open: nothing was sent.
            Exception: what the call raises.
        """
        if getattr(self._inside, "call", False):  # connecting, in the middle of a call
            return super().call_with_retry(do, fail, *_, **options)
        self._check()
        self._inside.call = True
        try:
            answer = super().call_with_retry(do, fail, *_, **options)
        except (redis.ConnectionError, redis.TimeoutError):
            self._failed()
            raise
        except redis.ResponseError:  # an answer, if not the wanted one: the next call does not wait for it either
            self._failures = 0
            raise
        finally:
            self._inside.call = False
        self._failures = 0
        return answer

    def _check(self) -> None:
        with self._lock:
            if self._failures < FAILURES:
                return
            now = time.monotonic()
            if now < self._opens_at:
                raise redis.ConnectionError(
                    f"Redis did not answer {self._failures} times in a row; it is asked again in "
                    f"{self._opens_at - now:.1f} s."
                )
            self._opens_at = now + OPEN_SECONDS  # this call tries; the others still fail at once

    def _failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._opens_at = time.monotonic() + OPEN_SECONDS


_REFUSALS: Final = (
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.BusyLoadingError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)
_REFUSAL: Final = re.compile(
    r"(?:^|caused error: |because of: |@user_script: ?\d+: )"  # plain, in a pipeline, in a transaction, in a script
    r"-?(?:NOREPLICAS|OOM|MISCONF|BUSY|LOADING|READONLY|CLUSTERDOWN|MASTERDOWN|UNBLOCKED)(?= |$)"
)
"""How a server answers that is full, busy, loading, without its replicas or disk, or not the master (any more)."""


def is_refusal(error: BaseException) -> bool:
    """Whether Redis answers that it does not do now what it will do later, when its operator has mended it."""
    if isinstance(error, _REFUSALS):
        return True
    return isinstance(error, redis.ResponseError) and _REFUSAL.search(str(error)) is not None


REDIS_DEADLINE_SECONDS: Final = 0.3
"""A dispatch waits no longer for Redis: the row is committed, and the relay pushes what could not be pushed."""

MAINTENANCE_REDIS_DEADLINE_SECONDS: Final = 2.0
"""Repair has more to ask, and no caller waits for it."""


def make_redis(
    url: str, deadline_seconds: float = REDIS_DEADLINE_SECONDS, retry: RedisRetry | None = None
) -> redis.Redis:
    """A client that answers or fails within its deadline.

    Args:
        url: of the server.
        deadline_seconds: for connecting, and for each answer.
        retry: None for no retries: redis-py would send a push twice when only the reply was lost (it retries by
            default since 6).
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=deadline_seconds,
        socket_connect_timeout=deadline_seconds,
        socket_keepalive=True,
        retry=retry or RedisRetry(NoBackoff(), 0),
    )
