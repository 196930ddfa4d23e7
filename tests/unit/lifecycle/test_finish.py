"""What follows an attempt that did not complete: every outcome against every budget."""

from dataclasses import dataclass

import pytest

from jobledger import Cancel, Outcome, Reason, Retry, Snooze
from jobledger.lifecycle.finish import MAX_CRASHES, MAX_LOSSES, Again, CancelRunning, Fail, HandBack, decide


@dataclass(frozen=True)
class Row:
    """The counters of a row, before this attempt is counted."""

    max_attempts: int = 1
    errors: int = 0
    crashes: int = 0
    losses: int = 0


PATIENT = Retry(5, base=2, jitter=False)


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.TIMEOUT])
@pytest.mark.parametrize(("errors", "wait"), [(0, 2), (1, 4), (2, 8), (3, 16)])
def test_an_error_is_retried_after_a_growing_wait(outcome: Outcome, errors: int, wait: float) -> None:
    assert decide(outcome, Row(max_attempts=5, errors=errors), PATIENT) == Again(wait, {"errors": 1})


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.TIMEOUT])
@pytest.mark.parametrize(("max_attempts", "errors"), [(1, 0), (5, 4), (5, 7)])
def test_the_last_error_is_the_end(outcome: Outcome, max_attempts: int, errors: int) -> None:
    decision = decide(outcome, Row(max_attempts=max_attempts, errors=errors), PATIENT)

    assert decision == Fail(Reason(outcome.value), {"errors": 1})


def test_the_attempts_of_the_row_count_rather_than_those_of_the_class() -> None:
    assert isinstance(decide(Outcome.ERROR, Row(max_attempts=2), Retry(1)), Again)
    assert isinstance(decide(Outcome.ERROR, Row(max_attempts=1), Retry(9)), Fail)


def test_an_error_that_the_class_gives_up_on_is_the_end_at_once() -> None:
    stubborn = Retry(5, give_up_on=(KeyError,))

    assert decide(Outcome.ERROR, Row(5), stubborn, KeyError()) == Fail(Reason.ERROR, {"errors": 1})
    assert isinstance(decide(Outcome.ERROR, Row(5), stubborn, ValueError()), Again)


def test_a_timeout_is_a_timeout_error_to_the_policy() -> None:
    decision = decide(Outcome.TIMEOUT, Row(5), Retry(5, give_up_on=(TimeoutError,)), TimeoutError())

    assert decision == Fail(Reason.TIMEOUT, {"errors": 1})


def test_a_program_that_exits_is_not_retried() -> None:
    assert isinstance(decide(Outcome.ERROR, Row(5), PATIENT, SystemExit(1)), Fail)


def test_crashes_and_losses_spend_nothing_of_the_budget_for_errors() -> None:
    spent = Row(max_attempts=2, errors=0, crashes=2, losses=19)

    assert isinstance(decide(Outcome.ERROR, spent, PATIENT), Again)


@pytest.mark.parametrize("crashes", range(MAX_CRASHES - 1))
def test_a_crash_is_tried_again_after_a_moment(crashes: int) -> None:
    decision = decide(Outcome.CRASHED, Row(crashes=crashes, errors=99, losses=99))

    assert isinstance(decision, Again)
    assert decision.spent == {"crashes": 1}
    assert 1 <= decision.wait_seconds < 1.25


def test_the_third_crash_is_the_end() -> None:
    assert decide(Outcome.CRASHED, Row(max_attempts=1000, crashes=2)) == Fail(Reason.CRASHED, {"crashes": 1})


@pytest.mark.parametrize("losses", range(MAX_LOSSES - 1))
def test_a_lost_attempt_is_tried_again_at_once(losses: int) -> None:
    assert decide(Outcome.LOST, Row(losses=losses, errors=99, crashes=99)) == Again(0, {"losses": 1})


@pytest.mark.parametrize("losses", range(1, MAX_LOSSES - 1))
def test_a_trouble_of_postgres_that_takes_attempt_after_attempt_gets_time_to_pass(losses: int) -> None:
    assert decide(Outcome.LOST, Row(), error=OSError("disk full")) == Again(0, {"losses": 1})
    decision = decide(Outcome.LOST, Row(losses=losses, errors=99, crashes=99), error=OSError("disk full"))
    assert isinstance(decision, Again)
    assert decision.spent == {"losses": 1}
    assert min(2**losses, 60) <= decision.wait_seconds <= 1.25 * min(2**losses, 60)


def test_the_twentieth_loss_is_the_end() -> None:
    assert decide(Outcome.LOST, Row(max_attempts=1000, losses=19)) == Fail(Reason.LOST, {"losses": 1})


@pytest.mark.parametrize("losses", [0, 19, 99])
def test_what_a_restart_of_postgres_lost_spends_nothing(losses: int) -> None:
    assert decide(Outcome.LOST, Row(losses=losses), server_restarted=True) == Again(0)


def test_a_restart_of_postgres_excuses_nothing_but_a_loss() -> None:
    assert decide(Outcome.CRASHED, Row(crashes=2), server_restarted=True) == Fail(Reason.CRASHED, {"crashes": 1})
    assert decide(Outcome.ERROR, Row(), server_restarted=True) == Fail(Reason.ERROR, {"errors": 1})


def test_an_attempt_that_was_handed_back_spends_nothing_whatever_was_spent_before() -> None:
    assert decide(Outcome.HANDED_BACK, Row(errors=99, crashes=99, losses=99)) == HandBack()


@pytest.mark.parametrize("unknown_for_seconds", [0, 3599.9])
def test_an_unknown_type_waits_for_another_worker_and_spends_nothing(unknown_for_seconds: float) -> None:
    spent = Row(errors=99, crashes=99, losses=99)

    assert decide(Outcome.UNKNOWN_TYPE, spent, unknown_for_seconds=unknown_for_seconds) == Again(30)


def test_a_type_unknown_for_an_hour_is_the_end() -> None:
    assert decide(Outcome.UNKNOWN_TYPE, Row(), unknown_for_seconds=3600) == Fail(Reason.UNDISPATCHABLE)


def test_a_snooze_waits_as_long_as_it_says_and_spends_nothing_whatever_was_spent_before() -> None:
    assert decide(Outcome.SNOOZED, Row(1, 99, 99, 99), PATIENT, Snooze("1m")) == Again(60)


def test_an_error_that_says_its_wait_is_retried_then_without_jitter() -> None:
    assert decide(Outcome.ERROR, Row(5), Retry(5), Retry.in_("1h")) == Again(3600, {"errors": 1})


def test_an_error_that_says_its_wait_is_retried_whatever_the_class_retries() -> None:
    picky = Retry(5, on=(OSError,), give_up_on=(Exception,))

    assert decide(Outcome.ERROR, Row(5), picky, Retry.in_(1)) == Again(1, {"errors": 1})


def test_the_last_error_is_the_end_whatever_wait_it_says() -> None:
    assert decide(Outcome.ERROR, Row(5, errors=4), PATIENT, Retry.in_(1)) == Fail(Reason.ERROR, {"errors": 1})


@pytest.mark.parametrize(
    ("error", "reason"), [(Cancel("no need"), "canceled by itself: no need"), (Cancel(), "canceled by itself")]
)
def test_a_job_that_cancels_itself_is_called_off(error: Cancel, reason: str) -> None:
    assert decide(Outcome.CANCELED, Row(5), PATIENT, error) == CancelRunning(reason)


def test_a_job_that_gives_up_has_failed_whatever_is_left() -> None:
    assert decide(Outcome.GAVE_UP, Row(1000), PATIENT) == Fail(Reason.ERROR, {"errors": 1})


def test_nothing_is_to_be_decided_about_a_completed_attempt() -> None:
    with pytest.raises(ValueError, match="completed"):
        decide(Outcome.COMPLETED, Row())


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.COMPLETED, Outcome.HANDED_BACK, Outcome.CANCELED}))
@pytest.mark.parametrize("row", [Row(), Row(1000, 998, 0, 0), Row(1, 0, 2, 0), Row(1, 0, 0, 19)])
def test_no_attempt_spends_more_than_one(outcome: Outcome, row: Row) -> None:
    decision = decide(outcome, row)

    assert isinstance(decision, Again | Fail)
    assert sum(decision.spent.values()) <= 1
