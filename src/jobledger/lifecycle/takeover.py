"""The end of an attempt that its own process does not write: it has died, is frozen, or reacts to nothing."""

from sqlalchemy.engine import Connection

from jobledger.domain.records import Evidence
from jobledger.domain.retry import Retry
from jobledger.domain.status import Outcome
from jobledger.ledger import leases
from jobledger.ledger.leases import Running
from jobledger.lifecycle import finish
from jobledger.lifecycle.finish import Settled


def take_over(
    connection: Connection,
    one: Running,
    outcome: Outcome,
    evidence: Evidence,
    retry: Retry = Retry(),  # noqa: B008 - frozen
    error: BaseException | None = None,
    *,
    surely: bool,
) -> Settled | None:
    """End an attempt, and its session of Postgres before that: a frozen process neither commits nor keeps locks.

    First comes the proof that the end can be written, and the lock on the job's row; then the session is ended. The
    lock may be the attempt's own session's, if it was frozen after it sent its end.

    Args:
        connection: waits for locks only a short time, see `connections.locks`.
        retry: the policy of the job's class, which decides about timeouts.
        error: what the policy judges.
        surely: the attempt is known to be over; otherwise only if its lease is stale now.

    Returns:
        None if it is not over after all, has ended, or another transaction has its row locked.

    Raises:
        LockTimeout: the table of attempts is locked, so that a stale lease proves nothing.
    """
    restarted = leases.server_restarted(connection, one.id, one.attempt)
    decision = finish.decide(outcome, one, retry, error, server_restarted=restarted)
    leases.prove_writable(connection)
    is_locked = leases.lock_if_lost(connection, one.id, one.attempt, surely=surely)
    if not is_locked and not leases.is_lost(connection, one.id, one.attempt, surely=surely):
        return None
    leases.end_backend(connection, one.id, one.attempt, surely=surely)
    if not is_locked and not leases.lock_if_lost(connection, one.id, one.attempt, surely=surely):
        return None
    return finish.settle(connection, one.id, one.attempt, outcome, decision, evidence)
