"""Several attempts in one process, each in a thread, of the parts that all kinds of workers share.

As a program it claims the jobs whose ids it is given, says where the board of its leases is, and works.
"""

import socket
import sys
import threading
from collections.abc import Sequence
from os import getpid, getppid
from uuid import UUID, uuid4

from jobledger import Connections, configure
from jobledger.connections.locks import transaction_waiting_for_locks
from jobledger.domain.records import Claim, Runner
from jobledger.ledger import moves
from jobledger.observe.log_run import LogTail
from jobledger.worker.attempt import Attempt
from jobledger.worker.completer import Completer
from jobledger.worker.interrupts import ThreadInterrupter
from jobledger.worker.keeping import Keeping
from jobledger.worker.notes import AttemptNote

RUNNER = Runner(
    worker="together", host=socket.gethostname(), pid=getpid(), version="1", isolated=False, has_session=False
)


def claim(connections: Connections, ids: Sequence[UUID]) -> list[Claim]:
    """Claim what may be claimed of these, in one statement."""
    deliveries = {one: uuid4() for one in ids}
    with transaction_waiting_for_locks(connections, 5, 0.2) as connection:
        return moves.claim_many(connection, deliveries, RUNNER, connections.settings.lease_seconds)


def start(keeping: Keeping, claims: Sequence[Claim]) -> list[threading.Thread]:
    """Run each claim in a thread of its own."""
    threads = [threading.Thread(target=run, args=(keeping, one), daemon=True) for one in claims]
    for thread in threads:
        thread.start()
    return threads


def run(keeping: Keeping, claim: Claim) -> None:
    """One attempt, from the claim to its end."""
    connections, tail = keeping.connections, LogTail()
    with keeping.lease_of(claim.id, tail) as lease:
        note = AttemptNote.of(claim, RUNNER, getppid(), connections.settings.lease_seconds, alone=False)
        lease.claimed(note, None)
        interrupter = ThreadInterrupter(claim.timeout_seconds)
        attempt = Attempt(connections, claim, lease, interrupter, tail, None, alone=False, whole_process=False)
        completer = Completer(connections)
        with attempt.logged:
            try:
                completer.complete(attempt, attempt.perform())
            except BaseException as error:
                completer.conclude(attempt, error)
        if attempt.connection is not None:
            attempt.connection.release()


if __name__ == "__main__":
    ours = Keeping(configure())
    threads = start(ours, claim(ours.connections, [UUID(one) for one in sys.argv[1:]]))
    print(ours.board.path, flush=True)  # noqa: T201
    for thread in threads:
        thread.join()
