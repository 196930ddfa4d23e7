"""What a dispatch writes: its rows and what they wait for, unless the same was dispatched before.

A plain dispatch is one statement. One with a key waits for whoever dispatches the same at this moment; that wait has an
end, and whatever goes wrong with it leaves the caller's transaction usable.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from jobledger.errors import DispatchContended, IdempotencyConflict, OptionError, ParentNotFound
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import dependencies, idempotency, transitions
from jobledger.ledger.rows import NewJob
from jobledger.options import Options
from jobledger.payload import fingerprint
from jobledger.status import TERMINAL, JobStatus, OnParentFailure
from jobledger.wake import Accepted

RIVAL_SECONDS: Final = 5
"""How long a transaction is waited for that dispatches the same."""

MOST_LOOKS: Final = 10
"""What was found may have ended before it was looked at; so often is looked again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One job to be dispatched: what its class says, already checked.

    Attributes:
        payload: the JSON object, as text.
    """

    job_type: str
    payload: str
    options: Options
    has_on_failed: bool

    @property
    def may_be_known(self) -> bool:
        """Whether the same may have been dispatched before."""
        return self.options.idempotency_key is not None


def admit(connection: Connection, rows: list[NewJob], requests: Sequence[Request]) -> list[Accepted]:
    """Write the rows of a dispatch, each for one request.

    Returns:
        What became of each.

    Raises:
        ParentNotFound: a parent is not in the ledger.
        IdempotencyConflict: a key was used for something else.
        DispatchContended: somebody who dispatches the same does not come to an end.
    """
    if not any(request.may_be_known for request in requests):
        return _write(connection, rows, requests)
    if len(requests) > 1 and any(request.options.idempotency_key is not None for request in requests):
        raise OptionError("An idempotency_key is for one job: dispatch each with a key of its own.")
    with waiting_for_rivals(connection):
        known = _known_by_key(connection, rows[0], requests[0])
        return [known] if known is not None else _write(connection, rows, requests)


_LIMIT_WAITS: Final = sa.text("""
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS lock_timeout)
SELECT before.lock_timeout, set_config('lock_timeout', :limit, true) FROM before
""")
_TOOK_TOO_LONG: Final = ("55P03", "40P01")  # lock timeout; deadlock, of two that dispatch the same in another order


@contextmanager
def waiting_for_rivals(connection: Connection) -> Iterator[None]:
    """Wait for other transactions for so long and no longer; an error inside undoes what was done inside.

    Raises:
        DispatchContended: one has not come to an end.
    """
    try:
        with connection.begin_nested():
            before = connection.execute(_LIMIT_WAITS, {"limit": f"{RIVAL_SECONDS}s"}).one().lock_timeout
            yield
            connection.execute(_LIMIT_WAITS, {"limit": before})
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None)
        if state not in _TOOK_TOO_LONG:
            raise
        raise DispatchContended(
            f"Another transaction dispatches the same, or holds that job, and has not ended within {RIVAL_SECONDS} s: "
            "nothing was written; try again."
        ) from error


def _known_by_key(connection: Connection, row: NewJob, request: Request) -> Accepted | None:
    """The job that was dispatched with the same key before; None if the key is now this row's."""
    scope, key = row.idempotency_scope, row.idempotency_key
    if scope is None or key is None:
        return None
    payload_hash = fingerprint([request.job_type, json.loads(request.payload)])
    for _ in range(MOST_LOOKS):
        if idempotency.take(connection, scope, key, payload_hash, row.id):
            return None
        taken = idempotency.find(connection, scope, key)
        if taken is None:  # pruned at this moment
            continue
        if taken.payload_hash != payload_hash:
            raise IdempotencyConflict(
                f"idempotency_key={key!r} was used before, by job {taken.job_id}, for another job type or payload.",
                taken.job_id,
            )
        return Accepted(taken.job_id, taken.status, None, is_duplicate=True)
    raise DispatchContended(f"idempotency_key={key!r} is taken and given back again and again: try again.")


def _write(connection: Connection, rows: list[NewJob], requests: Sequence[Request]) -> list[Accepted]:
    parents = requests[0].options.after if requests else ()
    inserted = _insert_children(connection, rows, requests) if parents else transitions.insert(connection, rows)
    by_id = {one.id: one for one in inserted}
    reach(Failpoint.AFTER_INSERT)
    return [by_id[row.id] for row in rows]


def _insert_children(connection: Connection, rows: list[NewJob], requests: Sequence[Request]) -> list[Accepted]:
    parents = _adopt(connection, requests[0].options.after)
    modes = {row.id: request.options.on_parent_failure for row, request in zip(rows, requests, strict=True)}
    inserted = transitions.insert(connection, [_as_child(row, modes[row.id], parents) for row in rows])
    dependencies.link(connection, list(parents), modes, [one for one, status in parents.items() if status in _HOW])
    return inserted


def _adopt(connection: Connection, parents: Sequence[UUID]) -> dict[UUID, JobStatus]:
    statuses = dependencies.adopt(connection, parents)
    missing = [str(one) for one in parents if one not in statuses]
    if missing:
        raise ParentNotFound(
            f"after= names {', '.join(missing)}, which the ledger does not have: never dispatched, not yet "
            "committed, or pruned."
        )
    return {one: statuses[one] for one in parents}


def _as_child(row: NewJob, mode: OnParentFailure, parents: Mapping[UUID, JobStatus]) -> NewJob:
    """The row of a job that waits for these; `adopt` has locked them."""
    unended = sum(status not in TERMINAL for status in parents.values())
    dead = [one for one, status in parents.items() if status in _HOW]
    if dead and mode is OnParentFailure.CANCEL:
        return replace(row, canceled_reason=f"parent {dead[0]} {_HOW[parents[dead[0]]]}")
    return replace(row, waiting_parents=unended + len(dead) * (mode is OnParentFailure.HOLD))


_HOW: Final = {JobStatus.FAILED: "failed", JobStatus.CANCELED: "was canceled"}
