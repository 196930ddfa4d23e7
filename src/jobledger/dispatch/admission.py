"""The writes of a dispatch: its rows and their dependencies, unless an equal job was dispatched before.

A plain dispatch is one statement. A dispatch with a key waits for a concurrent transaction that dispatches an equal
job. That wait is bounded, and its failure leaves the caller's transaction usable.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection

from jobledger.connections.locks import waiting_for_conflicts
from jobledger.domain.limits import AppliedLimit
from jobledger.domain.options import Options
from jobledger.domain.payload import Compared, fingerprint
from jobledger.domain.records import Accepted, NewJob
from jobledger.domain.status import TERMINAL, JobStatus, OnParentFailure
from jobledger.domain.unique import Unique
from jobledger.errors import AlreadyDispatched, DispatchContended, IdempotencyConflict, OptionError, ParentNotFound
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import moves, uniqueness
from jobledger.ledger.uniqueness import Holder

MOST_LOOKS: Final = 10
"""Most tries: a job that was found may end before it is read."""


@dataclass(frozen=True, slots=True)
class Request:
    """One job to be dispatched, with its checked options.

    Attributes:
        payload: the JSON object, as text.
        compared: the payload's form for comparisons, if needed; None for the payload itself.
    """

    job_type: str
    payload: str
    options: Options
    has_on_failed: bool
    unique: Unique | None = None
    applied_limits: tuple[AppliedLimit, ...] = ()
    compared: Compared | None = None

    @property
    def equal_by(self) -> Compared:
        """The payload's form for comparisons."""
        if self.compared is not None:
            return self.compared
        payload = json.loads(self.payload)
        return Compared(payload, payload)

    @property
    def may_be_known(self) -> bool:
        """Whether an equal job may have been dispatched before."""
        return self.options.idempotency_key is not None or self.unique is not None


def admit(
    connection: Connection, rows: list[NewJob], requests: Sequence[Request], patience_seconds: float | None = None
) -> list[Accepted]:
    """Write the rows of a dispatch, each for one request.

    Args:
        patience_seconds: longest wait for a transaction that dispatches an equal job; None for `CONFLICT_SECONDS`.

    Returns:
        The outcome of each request.

    Raises:
        ParentNotFound: a parent is not in the ledger.
        IdempotencyConflict: a key was used for something else.
        AlreadyDispatched: an equal job exists, and its class asks for this error.
        DispatchContended: another transaction dispatches an equal job and does not end.
    """
    if not any(request.may_be_known for request in requests):
        return _write(connection, rows, requests)
    if len(requests) > 1 and any(request.options.idempotency_key is not None for request in requests):
        raise OptionError("An idempotency_key is for one job: dispatch each with a key of its own.")
    with waiting_for_conflicts(connection, patience_seconds):
        known = _known_by_key(connection, rows[0], requests[0])
        if known is not None:
            return [known]
        accepted = _write_unique(connection, rows, requests)
        if accepted[0].is_duplicate and rows[0].idempotency_key is not None:
            uniqueness.point_key_to(connection, rows[0].idempotency_scope, rows[0].idempotency_key, accepted[0].id)
        return accepted


def _known_by_key(connection: Connection, row: NewJob, request: Request) -> Accepted | None:
    """The job that was dispatched before with this key; None if the key now belongs to this row."""
    scope, key = row.idempotency_scope, row.idempotency_key
    if scope is None or key is None:
        return None
    compared = request.equal_by
    payload_hash = fingerprint([request.job_type, compared.now])
    former_hash = fingerprint([request.job_type, compared.formerly])
    for _ in range(MOST_LOOKS):
        if uniqueness.take_key(connection, scope, key, payload_hash, row.id):
            return None
        taken = uniqueness.find_key(connection, scope, key)
        if taken is None:  # pruned meanwhile
            continue
        if taken.payload_hash not in (payload_hash, former_hash):
            raise IdempotencyConflict(
                f"idempotency_key={key!r} was used before, by job {taken.job_id}, for another job type or payload.",
                taken.job_id,
            )
        return Accepted(taken.job_id, taken.status, None, is_duplicate=True, is_replay=True)
    raise DispatchContended(f"idempotency_key={key!r} is taken and given back again and again: try again.")


@dataclass(frozen=True, slots=True)
class _Family:
    """The parents of a dispatch, and the fate of each row when one of them fails."""

    parents: Sequence[UUID]
    modes: Mapping[UUID, OnParentFailure]

    @classmethod
    def of(cls, rows: Sequence[NewJob], requests: Sequence[Request]) -> "_Family":
        modes = {row.id: request.options.on_parent_failure for row, request in zip(rows, requests, strict=True)}
        return cls(requests[0].options.after if requests else (), modes)


def _write(connection: Connection, rows: list[NewJob], requests: Sequence[Request]) -> list[Accepted]:
    by_id = _insert(connection, rows, _Family.of(rows, requests))
    return [by_id[row.id] for row in rows]


def _insert(connection: Connection, rows: list[NewJob], family: _Family) -> dict[UUID, Accepted]:
    """Write rows with their dependencies; leave out rows whose unique key another job has."""
    inserted = _insert_children(connection, rows, family) if family.parents else moves.insert(connection, rows)
    if any(row.applied_limits for row in rows):
        new = {one.id for one in inserted}
        moves.set_limits(connection, {row.id: row.applied_limits for row in rows if row.id in new})
    reach(Failpoint.AFTER_INSERT)
    return {one.id: one for one in inserted}


def _write_unique(connection: Connection, rows: list[NewJob], requests: Sequence[Request]) -> list[Accepted]:
    """Write rows that may equal others, of this dispatch or an earlier one.

    Keys are locked in sorted order, so that two concurrent dispatches do not deadlock.
    """
    family = _Family.of(rows, requests)
    equal = _EqualJobs(rows, requests)
    found: dict[UUID, Accepted] = {}
    for key, row, unique in sorted(equal.within, key=lambda one: one[0]):
        known = _known_in_window(connection, (*equal.former_keys(row), key), row, unique)
        if known is not None:
            found[row.id] = known
    for row, unique in equal.during:
        for key in equal.former_keys(row):
            holder = uniqueness.unfinished(connection, key)
            known = _resolve_conflict(connection, row, unique, holder) if holder is not None else None
            if known is not None:
                found[row.id] = known
    new = sorted((row for row in equal.rows if row.id not in found), key=lambda row: row.unique_key or "")
    if new:
        found |= _insert(connection, new, family)
    for row, unique in equal.during:
        if row.id not in found:
            found[row.id] = _known_unfinished(connection, row, unique, family)
    return [
        found[first] if first == row.id else replace(found[first], is_duplicate=True) for row, first in equal.firsts
    ]


class _EqualJobs:
    """The rows of a dispatch, without duplicates among them.

    Attributes:
        rows: the rows to write; of equal rows the first.
        firsts: each requested row, with the id of its equal that is written.
        during: the rows that are unique while unfinished.
        within: the rows that are unique for a time, with their keys.
    """

    def __init__(self, asked: Sequence[NewJob], requests: Sequence[Request]) -> None:
        self.firsts: list[tuple[NewJob, UUID]] = []
        self.during: list[tuple[NewJob, Unique]] = []
        self.within: list[tuple[str, NewJob, Unique]] = []
        self._former_keys: dict[UUID, set[str]] = {}
        kinds: dict[UUID, tuple[NewJob, str | None, Unique | None]] = {}
        by_key: dict[str, UUID] = {}
        for row, request in zip(asked, requests, strict=True):
            unique = request.unique
            key = unique.key(request.job_type, request.equal_by.now) if unique is not None else None
            first = by_key.setdefault(key, row.id) if key is not None else row.id
            self.firsts.append((row, first))
            former = unique.key(request.job_type, request.equal_by.formerly) if unique is not None else None
            if former is not None and former != key:
                self._former_keys.setdefault(first, set()).add(former)
            if first == row.id:
                kinds[first] = (row, key, unique)
            elif unique is not None and unique.on_conflict == "error":
                raise AlreadyDispatched(f"{row.job_type}: two of these jobs are equal, and one at a time may be.", None)
            elif unique is not None and unique.on_conflict == "replace":
                kinds[first] = (replace(row, id=first, queue=kinds[first][0].queue), key, unique)
        self.rows: list[NewJob] = []
        for row, key, unique in kinds.values():
            is_during = unique is not None and unique.within_seconds is None
            written = replace(row, unique_key=key) if is_during else row
            self.rows.append(written)
            if unique is not None and key is not None:
                if is_during:
                    self.during.append((written, unique))
                else:
                    self.within.append((key, written, unique))

    def former_keys(self, row: NewJob) -> list[str]:
        """The keys that an earlier version of jobledger may have stored for equal jobs, if they differ."""
        return sorted(self._former_keys.get(row.id, ()))


def _known_in_window(connection: Connection, keys: Sequence[str], row: NewJob, unique: Unique) -> Accepted | None:
    """The equal job of the current window; None if this row begins a new window, under the last key."""
    for _ in range(MOST_LOOKS):
        for key in keys:
            holder = uniqueness.in_window(connection, key)
            if holder is not None:
                return _resolve_conflict(connection, row, unique, holder) or Accepted(
                    holder.id, holder.status, None, is_duplicate=True
                )
        if uniqueness.open_window(connection, keys[-1], unique.within_seconds or 0.0, row.id):
            return None
    raise DispatchContended(f"{row.job_type}: equal jobs come and go too quickly: try again.")


def _known_unfinished(connection: Connection, row: NewJob, unique: Unique, family: _Family) -> Accepted:
    """The equal job that has not ended; or this row's own job, if the equal job has ended meanwhile."""
    for _ in range(MOST_LOOKS):
        holder = uniqueness.unfinished(connection, row.unique_key or "")
        if holder is None:
            inserted = _insert(connection, [row], family)
            if row.id in inserted:
                return inserted[row.id]
            continue
        met = _resolve_conflict(connection, row, unique, holder)
        if met is not None:
            return met
    raise DispatchContended(f"{row.job_type}: equal jobs come and go too quickly: try again.")


_WAITING: Final = (JobStatus.DEFERRED, JobStatus.SCHEDULED, JobStatus.QUEUED)


def _resolve_conflict(connection: Connection, row: NewJob, unique: Unique, holder: Holder) -> Accepted | None:
    """The outcome for a row whose equal exists; None if the equal job has moved on and must be read again."""
    if unique.on_conflict == "error":
        stands = f"is {holder.status}" if holder.status is not None else "was dispatched not long ago"
        raise AlreadyDispatched(f"{row.job_type}: an equal job, {holder.id}, {stands}.", holder.id)
    if unique.on_conflict == "replace" and holder.status in _WAITING:
        replaced = moves.replace_waiting(connection, holder.id, row)
        if replaced is not None:
            moves.replace_limits(connection, holder.id, row.applied_limits)
            return replaced
        now = uniqueness.look(connection, holder.id)
        if now is None or now in TERMINAL:
            return None
        return Accepted(holder.id, now, None, is_duplicate=True)
    return Accepted(holder.id, holder.status, None, is_duplicate=True)


def _insert_children(connection: Connection, rows: list[NewJob], family: _Family) -> list[Accepted]:
    parents = _lock_parents(connection, family.parents)
    inserted = moves.insert(connection, [_as_child(row, family.modes[row.id], parents) for row in rows])
    if inserted:
        modes = {one.id: family.modes[one.id] for one in inserted}
        moves.link(connection, parents, modes)
    return inserted


def _lock_parents(connection: Connection, parents: Sequence[UUID]) -> dict[UUID, JobStatus]:
    statuses = moves.lock_parents(connection, parents)
    missing = [str(one) for one in parents if one not in statuses]
    if missing:
        raise ParentNotFound(
            f"after= names {', '.join(missing)}, which the ledger does not have: never dispatched, not yet "
            "committed, or pruned."
        )
    return {one: statuses[one] for one in parents}


def _as_child(row: NewJob, mode: OnParentFailure, parents: Mapping[UUID, JobStatus]) -> NewJob:
    """The row as a child of these parents, which `lock_parents` has locked."""
    unended = sum(status not in TERMINAL for status in parents.values())
    dead = [one for one, status in parents.items() if status in _HOW]
    if dead and mode is OnParentFailure.CANCEL:
        return replace(row, canceled_reason=f"parent {dead[0]} {_HOW[parents[dead[0]]]}")
    return replace(row, waiting_parents=unended + len(dead) * (mode is OnParentFailure.HOLD))


_HOW: Final = {JobStatus.FAILED: "failed", JobStatus.CANCELED: "was canceled"}
