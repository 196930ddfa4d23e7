"""Requests of people: retry or cancel jobs, pause and resume queues or types. Refusals are answers, not errors."""

from jobledger.control.answer import LONGEST_REASON, Answer, Verdict
from jobledger.control.jobs import CANCEL_SECONDS, cancel, retry, wait_for_cancel
from jobledger.control.many import Selection, cancel_selected, kinds, retry_selected, to_cancel, to_retry
from jobledger.control.pauses import pause, paused, resume
from jobledger.domain.status import PauseKind
from jobledger.ledger.queries import Filter

__all__ = [
    "CANCEL_SECONDS",
    "LONGEST_REASON",
    "Answer",
    "Filter",
    "PauseKind",
    "Selection",
    "Verdict",
    "cancel",
    "cancel_selected",
    "kinds",
    "pause",
    "paused",
    "resume",
    "retry",
    "retry_selected",
    "to_cancel",
    "to_retry",
    "wait_for_cancel",
]
