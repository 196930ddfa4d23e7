"""The queues in a Redis have one ledger as owner: its workers and schedulers write this from their start to their end.

A second ledger with the same queues would lose wake-ups to workers of the first, which have no such jobs. So its
workers and schedulers refuse to start. An owner that gives no sign of life, such as a database that was
dropped or moved, is replaced.
"""

import os
import threading
import time
from typing import Final

import redis

from jobledger.connections.default import Connections
from jobledger.errors import ConfigurationError
from jobledger.ledger.identity import LedgerName, ledger_name
from jobledger.observe.log import get_logger
from jobledger.process import this_process
from jobledger.queues import owner
from jobledger.queues.owner import Owner

log: Final = get_logger(__name__)

SIGN_SECONDS: Final = 2.0
"""The pause between two signs of life of a process."""

SILENT_SECONDS: Final = 8.0
"""An owner is gone if none of its processes gives a sign of life for so long."""

LOOK_SECONDS: Final = 0.2


def take_queues(connections: Connections) -> None:
    """Make this ledger the owner of the queues, at the start of a process that works on them.

    While a server is away nothing is written: `QueuesKeeper` does it later.

    Raises:
        ConfigurationError: processes of another ledger work on them.
    """
    name = ledger_name(connections) if connections.settings.redis_url is not None else None
    if name is None:
        return
    try:
        _take(connections, name)
    except redis.RedisError as error:
        log.warning("The owner of the queues is not known yet", error=str(error))


def _take(connections: Connections, name: LedgerName) -> None:
    first = last = _keep(connections, name)
    if first is None or last is None:
        return
    log.warning("Another ledger has these queues: waiting for a sign of life", it=f"{first.id} ({first.words})")
    ends_at = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < ends_at:
        time.sleep(LOOK_SECONDS)
        last = _keep(connections, name)
        if last is None:
            return
        if last.raw != first.raw:
            raise ConfigurationError(refusal(connections, name, last))
    other = _keep(connections, name, instead_of=last)
    if other is not None:
        raise ConfigurationError(refusal(connections, name, other))
    log.warning("The queues were another ledger's, which is silent", it=f"{first.id} ({first.words})")


def refusal(connections: Connections, name: LedgerName, other: Owner) -> str:
    """The error message for two ledgers with the same queues."""
    prefix = connections.settings.queue_prefix
    which = f"with the prefix {prefix!r}" if prefix else "without a prefix"
    return (
        f"The queues {which} in this Redis are those of ledger {other.id} ({other.words}), which {other.process} works"
        f" on; this is ledger {name}. Say another JOBLEDGER_QUEUE_PREFIX for one of them, or another database in"
        " JOBLEDGER_REDIS_URL."
    )


def _keep(connections: Connections, name: LedgerName, instead_of: Owner | None = None) -> Owner | None:
    prefix = connections.settings.queue_prefix
    return owner.keep(connections.maintenance_redis, prefix, name.id, name.words, this_process(), instead_of)


class QueuesKeeper:
    """Gives signs of life in a thread, as long as the process runs.

    Args:
        connections: of the process; the thread makes its own client from their settings.
        parent: pid of the worker that the signs speak for, if it is not this process: they end with it.
    """

    def __init__(self, connections: Connections, parent: int | None = None) -> None:
        self._parent = parent
        self._connections = Connections(connections.settings, connections.application_name)
        self._of = connections
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobledger-queues", daemon=True)
        self._met: str | None = None

    def start(self) -> None:
        """Start the thread."""
        if self._connections.settings.redis_url is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread; another ledger may own the queues soon, if no other process of this one keeps them."""
        self._stopping.set()
        name = ledger_name(self._of)
        if self._thread.ident is None or name is None:
            return
        self._thread.join(SIGN_SECONDS)
        try:
            owner.leave(self._connections.maintenance_redis, self._connections.settings.queue_prefix, name.id)
        except redis.RedisError as error:
            log.info("Redis is away: the owner of the queues expires by itself", error=str(error))

    def _run(self) -> None:
        while not self._stopping.wait(SIGN_SECONDS) and self._parent in (None, os.getppid()):
            name = ledger_name(self._of)
            if name is None:
                continue
            try:
                other = _keep(self._connections, name)
            except redis.RedisError:
                continue  # other parts report that Redis is away
            if other is not None and other.id != self._met:
                log.error("Two ledgers have the same queues", problem=refusal(self._connections, name, other))
            self._met = other.id if other is not None else None
