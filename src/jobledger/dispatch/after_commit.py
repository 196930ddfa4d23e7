"""Actions after the commit of a session that dispatched jobs: pushing wake-ups, and releasing held jobs to slots."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from jobledger.connections.default import Connections
from jobledger.dispatch.parts import in_batches
from jobledger.domain.records import Wake
from jobledger.lifecycle import limits
from jobledger.lifecycle.push import push, push_quietly

_AFTER_COMMIT: Final = "jobledger_after_commit"
"""Key in `session.info` of the wake-ups that wait for the session's commit."""


@dataclass(slots=True)
class AfterCommit:
    """The wake-ups that wait for the commit of one session, each with its (sub)transaction."""

    _connections: Connections | None = None
    _waiting: list[tuple[SessionTransaction | None, Wake | str, bool]] = field(default_factory=list)

    def add(
        self,
        session: Session,
        connections: Connections,
        wakes: Sequence[Wake],
        keys: Sequence[str] = (),
        *,
        has_room: bool,
    ) -> None:
        """Keep wake-ups until the commit.

        Args:
            session: the session of the dispatch.
            connections: the servers.
            wakes: the wake-ups to push.
            keys: the `held_by` values of dispatched jobs that wait for a slot.
            has_room: whether the wake-ups are known to have room in their lists.
        """
        self._connections = connections
        written_in = session.get_nested_transaction() or session.get_transaction()
        self._waiting.extend((written_in, wake, has_room) for wake in wakes)
        self._waiting.extend((written_in, key, has_room) for key in keys)

    def push(self) -> None:
        """Push the committed wake-ups, and release as many held jobs as there are free slots."""
        waiting, self._waiting = self._waiting, []
        if self._connections is not None:
            for batch in in_batches([one for _, one, has_room in waiting if has_room and isinstance(one, Wake)]):
                push(self._connections, batch)
            for batch in in_batches([one for _, one, has_room in waiting if not has_room and isinstance(one, Wake)]):
                push_quietly(self._connections, batch)
            limits.release_new(self._connections, [one for _, one, _ in waiting if isinstance(one, str)])

    def _rolled_back(self, _: Session, rolled_back: SessionTransaction) -> None:
        self._waiting = [one for one in self._waiting if not _is_inside(one[0], rolled_back)]

    def _committed(self, session: Session) -> None:
        # SQLAlchemy calls this also for the release of a savepoint; only the outermost commit counts.
        if session.get_nested_transaction() is None:
            self.push()

    def _ended(self, _: Session, ended: SessionTransaction) -> None:
        # Committed wake-ups are pushed by now. `session.close()` rolls back without an event.
        if ended.parent is None:
            self._waiting.clear()


def after_commit_of(session: Session, *, until_commit: bool) -> AfterCommit:
    """Collect the wake-ups of dispatches in this session, without those of transactions and savepoints rolled back.

    Args:
        until_commit: push them when the session commits; False if the caller will call `push()`, because the
            session's commit is not yet the database's.
    """
    held: AfterCommit | None = session.info.get(_AFTER_COMMIT)
    if held is None:
        held = session.info[_AFTER_COMMIT] = AfterCommit()
        sa.event.listen(session, "after_soft_rollback", held._rolled_back)
        if until_commit:
            sa.event.listen(session, "after_commit", held._committed)
            sa.event.listen(session, "after_transaction_end", held._ended)
    return held


def _is_inside(where: SessionTransaction | None, rolled_back: SessionTransaction) -> bool:
    while where is not None:
        if where is rolled_back:
            return True
        where = where.parent
    return False
