"""Pauses of queues and of job types."""

from typing import Final

from jobledger.connections.default import Connections
from jobledger.control.answer import BATCH, DEADLINE_SECONDS, LONGEST_REASON
from jobledger.domain.options import queue_name
from jobledger.domain.payload import storable
from jobledger.domain.status import PauseKind
from jobledger.errors import OptionError
from jobledger.ledger import pauses
from jobledger.ledger.pauses import Pause
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

LONGEST_TYPE: Final = 200


def pause(connections: Connections, kind: PauseKind, name: str, by: str, reason: str = "") -> Pause:
    """Pause a queue or a job type: its jobs are held from the next claim on, until `resume`. Running jobs go on.

    Args:
        connections: the servers; Redis is not needed.
        kind: queue or job type.
        name: name of the queue or of the job type.
        by: name of the requester, for people.
        reason: reason for people.

    Returns:
        The new pause, or the existing one.

    Raises:
        OptionError: the name is invalid.
        LedgerUnavailable: Postgres is away.
    """
    checked = _checked_name(kind, name)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        stands = pauses.pause(connection, kind, checked, storable(by), storable(reason)[:LONGEST_REASON] or None)
    log.info("Paused", kind=kind.value, name=checked, by=by)
    return stands


def resume(connections: Connections, kind: PauseKind, name: str, by: str) -> int | None:
    """End a pause: the held jobs are pushed, by priority and age.

    If this is interrupted, schedulers release the rest.

    Returns:
        Number of held jobs; None if there was no pause.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = pauses.resume(connection, kind, name)
    if ended is None:
        return None
    total = 0
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            released = pauses.release(connection, ended.held_by, BATCH)
        total += released
        if released < BATCH:
            break
    log.info("Resumed", kind=kind.value, name=name, released=total, by=by)
    return total


def paused(connections: Connections) -> list[Pause]:
    """All pauses.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return pauses.list_all(connection)


def _checked_name(kind: PauseKind, name: str) -> str:
    if kind is PauseKind.QUEUE:
        return queue_name(name)
    if not 1 <= len(name) <= LONGEST_TYPE or not name.isprintable():
        raise OptionError(f"{name!r:.60}: a job type's name is a text of 1 to {LONGEST_TYPE} characters.")
    return name
