"""The moves of a job: the only writers of `job_statuses.status`, one guarded statement for each.

A guard names the status that it expects and, for an attempt, the fence (`attempt`). No row back means that another
process moved the job first. Time is the database's; inside a transaction that began long ago it is the statement's.
Nothing here commits: the caller owns the transaction. The statements run on a connection of any driver, so each
parameter is cast to its type.

insert      nothing -> queued, scheduled, deferred, canceled
claim       queued -> started
limits      claims of jobs with limits, and the release of held ones
finish      started -> completed, scheduled, queued, failed, canceled
children    deferred -> queued, scheduled, canceled
waiting     scheduled -> queued when due; expired, or all wake-ups lost -> failed
control     requests of people: retry, cancel
"""

from jobledger.ledger.moves.children import (
    Child,
    cancel_children,
    deferred_between,
    link,
    lock_parents,
    next_children,
    note_untold,
    release_children,
    release_stuck,
    stuck_children,
    take_untold,
)
from jobledger.ledger.moves.claim import claim, claim_again, claim_many
from jobledger.ledger.moves.control import cancel, cancel_many, request_cancel, retry, retry_many, run_deferred
from jobledger.ledger.moves.finish import (
    Completion,
    cancel_running,
    complete,
    complete_many,
    fail,
    hand_back,
    reschedule,
)
from jobledger.ledger.moves.insert import insert, replace_waiting
from jobledger.ledger.moves.limits import (
    LimitedClaim,
    Released,
    claim_limited,
    give_back_slots,
    make_limit_keys,
    make_way,
    release_oldest,
    replace_limits,
    set_limits,
)
from jobledger.ledger.moves.waiting import Expired, expire, expired, give_up, promote_due

__all__ = [
    "Child",
    "Completion",
    "Expired",
    "LimitedClaim",
    "Released",
    "cancel",
    "cancel_children",
    "cancel_many",
    "cancel_running",
    "claim",
    "claim_again",
    "claim_limited",
    "claim_many",
    "complete",
    "complete_many",
    "deferred_between",
    "expire",
    "expired",
    "fail",
    "give_back_slots",
    "give_up",
    "hand_back",
    "insert",
    "link",
    "lock_parents",
    "make_limit_keys",
    "make_way",
    "next_children",
    "note_untold",
    "promote_due",
    "release_children",
    "release_oldest",
    "release_stuck",
    "replace_limits",
    "replace_waiting",
    "request_cancel",
    "reschedule",
    "retry",
    "retry_many",
    "run_deferred",
    "set_limits",
    "stuck_children",
    "take_untold",
]
