"""The words of the ledger, and the one table of legal moves."""

import pytest

from jobledger import JobStatus
from jobledger.domain.status import MOVES, TERMINAL, UNFINISHED


def test_a_completed_job_stays_so() -> None:
    assert [after for before, after in MOVES if before is JobStatus.COMPLETED] == []


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED])
def test_a_job_that_ended_otherwise_can_only_be_queued_again(status: JobStatus) -> None:
    assert [after for before, after in MOVES if before is status] == [JobStatus.QUEUED]


@pytest.mark.parametrize("status", sorted(JobStatus))
def test_every_status_can_be_reached_from_nothing(status: JobStatus) -> None:
    reached: set[JobStatus | None] = {None}
    while fresh := {after for before, after in MOVES if before in reached} - reached:
        reached |= fresh

    assert status in reached


@pytest.mark.parametrize("status", sorted(UNFINISHED))
def test_every_unfinished_status_leads_to_an_end(status: JobStatus) -> None:
    reached = {status}
    while fresh := {after for before, after in MOVES if before in reached} - reached:
        reached |= fresh

    assert reached & TERMINAL


def test_only_a_claim_starts_a_job() -> None:
    assert [before for before, after in MOVES if after is JobStatus.STARTED] == [JobStatus.QUEUED]


def test_only_a_started_job_completes() -> None:
    assert [before for before, after in MOVES if after is JobStatus.COMPLETED] == [JobStatus.STARTED]


def test_a_job_may_fail_wherever_it_stands() -> None:
    assert {before for before, after in MOVES if after is JobStatus.FAILED} == UNFINISHED


def test_no_status_moves_to_itself() -> None:
    assert all(before is not after for before, after in MOVES)


def test_a_status_is_terminal_or_unfinished() -> None:
    assert set(JobStatus) == TERMINAL | UNFINISHED
    assert not TERMINAL & UNFINISHED
