"""The Redis client of a worker's own process: an outage of minutes makes it wait, and does not end it.

A server that answers and refuses (full, busy, loading, without its replicas or its disk, demoted) is away like any
other.

RQ's worker keeps its bookkeeping in Redis, and most of that is unprotected: one error while a job runs ends the worker,
and its work-horse with it. Sending a command again is harmless here. RQ's bookkeeping sets what is so, and is the same
done twice (a counter of its statistics may count twice). A wake-up that was popped by a command whose answer was lost
is gone from Redis, and the reconciler brings it back; one that was pushed twice finds nothing to claim.
"""

import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, MaxConnectionsError
from redis.retry import Retry

from jobledger.connections.redis import is_refusal
from jobledger.observe.log import get_logger

T = TypeVar("T")

log: Final = get_logger(__name__)

PATIENCE_SECONDS: Final = 900.0
"""After this an operator must look; the worker ends, and is started again."""

STOPPING_PATIENCE_SECONDS: Final = 30.0
"""What is left from the moment a stop is seen: longer than a job's time to drain, shorter than a supervisor's."""

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 2.0
CONNECT_SECONDS: Final = 3.0
HEALTH_CHECK_SECONDS: Final = 15
"""A connection that was idle for longer is tried by a PING before it is used."""

KEEPALIVE: Final = {
    socket.TCP_KEEPIDLE: 15,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,  # milliseconds; keepalives say nothing while sent data is unacknowledged
}
"""A peer that has vanished without a word is noticed within 30 s, also under a pop that waits for minutes."""

_AWAY: Final = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, socket.timeout)
_NOT_ADMITTED: Final = (AuthenticationError, AuthorizationError, MaxConnectionsError)


class RedisPatience(Retry):
    """Tries again for as long as it has patience, in seconds: nested calls, as redis-py makes them, share it.

    Args:
        seconds: from the first failure on.
        stopping_seconds: from the first failure on that comes after this worker was asked to stop.
    """

    def __init__(self, seconds: float = PATIENCE_SECONDS, stopping_seconds: float = STOPPING_PATIENCE_SECONDS) -> None:
        super().__init__(NoBackoff(), -1, _AWAY)
        self._seconds = seconds
        self._stopping_seconds = stopping_seconds

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        """Call until it works or patience ends.

        Raises:
            Exception: the last failure; or at once, one that waiting does not mend.
        """
        failures, pause = 0, FIRST_PAUSE_SECONDS
        ends_at = time.monotonic() + self._seconds
        while True:
            try:
                return do()
            except (*_AWAY, redis.ResponseError) as error:
                if not _may_pass(error) or (is_retryable is not None and not is_retryable(error)):
                    raise
                failures += 1
                with suppress(*_AWAY, redis.ResponseError):  # it raises the error again, of a pipeline that watches
                    fail(error, failures) if with_failure_count else fail(error)
                if time.monotonic() + pause > min(ends_at, _stop_deadline(self._stopping_seconds)):
                    raise
                if failures == 1:
                    log.warning("Redis is away: waiting for it", error=str(error))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class ResilientRedis(redis.Redis):
    """For `rq worker --connection-class jobledger.worker.ResilientRedis`; `python -m jobledger worker` says it itself.

    Takes what `redis.Redis` takes; what is given wins over what this sets.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({**_options(), **options} if "connection_pool" not in options else options))

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """A client of the server that a URL names."""
        ours = _options()
        if url.startswith("unix:"):
            del ours["socket_keepalive"], ours["socket_keepalive_options"]
        made: Self = super().from_url(url, **{**ours, **options})  # type: ignore[assignment]
        return made


def with_endurance(url: str) -> str:
    """A URL that carries what a URL can, for a worker whose client is redis-py's own.

    That is one more try over a new connection, so that a Redis that was restarted between two commands is no error.
    What the URL says already stays.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        return url
    ours = {
        "retry_on_timeout": "true",  # and on lost connections
        "socket_connect_timeout": f"{CONNECT_SECONDS:g}",
        "health_check_interval": str(HEALTH_CHECK_SECONDS),
    }
    said = parse_qs(parts.query)
    more = urlencode({name: value for name, value in ours.items() if name not in said})
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, more]))))


def _options() -> dict[str, Any]:
    return {
        "retry": RedisPatience(),
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_keepalive": True,
        "socket_keepalive_options": KEEPALIVE,
        "health_check_interval": HEALTH_CHECK_SECONDS,
    }


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _NOT_ADMITTED):
        return False
    return isinstance(error, _AWAY) or is_refusal(error)


class _Process:
    """What is one per process: until when it waits for Redis once it was asked to stop."""

    stop_deadline: float | None = None


def _stop_deadline(stopping_seconds: float) -> float:
    """When patience ends for a worker that stops; all its calls share the moment, so that a stop takes its time once.

    RQ notes a stop by replacing its handler (rq 3.0 worker/base.py:550), before it says anything to Redis.
    """
    if getattr(signal.getsignal(signal.SIGTERM), "__name__", "") != "request_force_stop":
        return float("inf")
    if _Process.stop_deadline is None:
        _Process.stop_deadline = time.monotonic() + stopping_seconds
    return _Process.stop_deadline
