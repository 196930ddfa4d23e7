"""Whether what was started is ready: asked of it, from outside."""

import http.client
import socket
from collections.abc import Iterable
from typing import Final, cast

import redis

from jobledger.connections import make_redis

_ANSWER_SECONDS: Final = 2.0
_WORKERS_KEY: Final = "rq:workers"  # rq 3.0 worker_registration.py:18


def answers(host: str, port: int, path: str) -> bool:
    """Whether GET gives 200. No proxy is asked, whatever the environment says."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def registered(url: str, pids: Iterable[int | None]) -> bool:
    """Whether RQ knows workers with all these process ids on this host."""
    try:
        with make_redis(url, _ANSWER_SECONDS) as client:
            keys = cast("set[bytes]", client.smembers(_WORKERS_KEY))
            found = [client.hmget(key, "pid", "hostname") for key in map(bytes.decode, keys)]
    except redis.RedisError:
        return False
    here = socket.gethostname().encode()
    known = {int(pid) for pid, host in cast("list[list[bytes | None]]", found) if pid and host == here}
    return set(pids) <= known
