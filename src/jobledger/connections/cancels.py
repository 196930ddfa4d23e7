"""Cancel requests: they end the wait of a session whose client has gone, and need no session of their own.

A backend notices that its client has cut the connection only when it reads or writes. A backend that waits for a
synchronous standby, or for a lock, does neither; it would take one of `max_connections` as long as the wait lasts.
Postgres takes a cancel request from any client with the session's key, also when no connection is left.

psycopg2's `cancel()` holds the interpreter's lock while it waits for the server, and needs an open connection. So libpq
is called directly, with a copy of the key that outlives the connection.
"""

import _thread
import ctypes
import logging
import threading
from collections import deque
from typing import Any, Final

import psycopg2._psycopg

log: Final = logging.getLogger(__name__)

MOST_THREADS: Final = 4
"""A frozen server keeps each of them waiting; a healthy one answers in a millisecond."""

MOST_WAITING: Final = 1000

_libpq: Final = ctypes.CDLL(psycopg2._psycopg.__file__)  # with the libraries that it is linked to
_libpq.PQgetCancel.restype = ctypes.c_void_p
_libpq.PQgetCancel.argtypes = [ctypes.c_void_p]
_libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
_libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
_libpq.PQfreeCancel.restype = None


class CancelKey:
    """The key of one session.

    Args:
        raw: the psycopg2 connection; open, and not in use by another thread.
    """

    def __init__(self, raw: Any) -> None:
        self._key: int | None = _libpq.PQgetCancel(raw.pgconn_ptr)

    def send(self) -> None:
        """Ask the server to cancel the session's statement, and wait until it has the request. An idle or ended session
        is no error."""
        said = ctypes.create_string_buffer(256)
        if self._key is not None and not _libpq.PQcancel(self._key, said, len(said)):
            log.debug("No cancel request was sent: %s", said.value.decode(errors="replace").strip())

    def __del__(self) -> None:
        if self._key is not None:
            _libpq.PQfreeCancel(self._key)


class Canceler:
    """Sends cancel requests in threads of its own, since a server may keep each waiting. One per process."""

    def __init__(self) -> None:
        self._waiting: deque[CancelKey] = deque(maxlen=MOST_WAITING)
        self._lock = threading.Lock()
        self._threads = 0

    def send(self, key: CancelKey) -> None:
        """Have a request sent soon, without waiting for it."""
        with self._lock:
            self._waiting.append(key)
            if self._threads == MOST_THREADS:
                return
            self._threads += 1
        try:
            _thread.start_new_thread(self._work, ())
        except RuntimeError as error:
            log.warning("No thread can be started: a session is not canceled (%s)", error)
            with self._lock:
                self._threads -= 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                key = self._waiting.popleft()
            key.send()
