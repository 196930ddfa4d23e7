"""A chore's pass over many jobs, each in a transaction of its own: what goes wrong with one stops no other."""

import time
from collections.abc import Callable
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from jobledger.connections.default import Connections
from jobledger.connections.locks import LockPatience, LockTimeout, limit_statements, transaction_waiting_for_locks
from jobledger.connections.postgres import LACKS_RESOURCES, QUERY_CANCELED, first_line, has_state
from jobledger.ledger import heartbeats
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

T = TypeVar("T")


STATEMENT_SECONDS: Final = 5.0
"""A statement about one job that takes longer is canceled: the others wait."""

RECORD_SECONDS: Final = 5.0


class OneByOne:
    """One pass.

    Args:
        connections: the servers.
        deadline_seconds: of each transaction.
        sweep: its name, if it is to be recorded every few seconds that it goes on: a long pass is no gap between two.
    """

    def __init__(self, connections: Connections, deadline_seconds: float, sweep: str | None = None) -> None:
        self._connections = connections
        self._deadline_seconds = deadline_seconds
        self._sweep = sweep
        self._recorded_at = time.monotonic()
        self._patience = LockPatience()
        self._error: SQLAlchemyError | None = None

    def do(self, job_id: UUID, action: Callable[[Connection], T]) -> T | None:
        """Do something about one job.

        Returns:
            What the action returns; None if the job could not be changed: then nothing was, and the next pass tries
            it again.

        Raises:
            LedgerUnavailable: Postgres is away: there is no use in going on.
            SQLAlchemyError: the same, it lacks room.
        """
        self.record_again()
        try:
            with transaction_waiting_for_locks(
                self._connections, self._deadline_seconds, self._patience.lock_seconds
            ) as connection:
                limit_statements(connection, STATEMENT_SECONDS)
                done = action(connection)
        except LockTimeout as held:
            self._patience.note_held()
            words = "Left for the next pass: another transaction holds it"
            log.warning(words, job_id=str(job_id), error=str(held))
            return None
        except SQLAlchemyError as error:
            if has_state(error, LACKS_RESOURCES):  # no other job will do better
                raise
            if has_state(error, (QUERY_CANCELED,)):
                log.warning("Left for the next pass: it takes too long", job_id=str(job_id), error=first_line(error))
                return None
            self._error = self._error or error
            log.error("Left for the next pass: Postgres refuses", job_id=str(job_id), exc_info=error)
            return None
        return done

    def record_again(self) -> None:
        """Record that the pass goes on, if it was not done for a while; `do` does this, too."""
        if self._sweep is not None and time.monotonic() >= self._recorded_at + RECORD_SECONDS:
            with self._connections.transaction(self._deadline_seconds) as connection:
                heartbeats.record_again(connection, self._sweep)
            self._recorded_at = time.monotonic()

    def end(self) -> None:
        """To be called after the last job.

        Raises:
            SQLAlchemyError: the first thing, of one job, that Postgres has refused.
        """
        if self._error is not None:
            raise self._error
