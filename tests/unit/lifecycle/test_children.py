"""What becomes of the children of a job that has ended."""

from uuid import UUID

import pytest

from jobledger.domain.records import LAST_ID, Untold
from jobledger.domain.status import JobStatus, OnParentFailure
from jobledger.ledger.moves import Child
from jobledger.lifecycle.children import plan

CANCEL, RUN = OnParentFailure.CANCEL, OnParentFailure.RUN
COMPLETED, FAILED, CANCELED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED
PARENT, OTHER = UUID(int=1), UUID(int=2)


def child(
    number: int,
    status: JobStatus = COMPLETED,
    mode: OnParentFailure = CANCEL,
    *,
    of: int = 0,
    waits: bool = True,
    is_locked: bool = True,
) -> Child:
    return Child(of, (PARENT, OTHER)[of], status, UUID(int=number), mode, waits, is_locked)


@pytest.mark.parametrize("mode", [CANCEL, RUN, OnParentFailure.HOLD])
def test_children_of_a_completed_job_wait_for_it_no_longer(mode: OnParentFailure) -> None:
    step = plan([Untold(PARENT)], [child(10, mode=mode)], each=5)

    assert (step.releases, step.cancels) == ([(PARENT, UUID(int=10))], {})


@pytest.mark.parametrize(("status", "how"), [(FAILED, "failed"), (CANCELED, "was canceled")])
def test_children_of_another_one_are_canceled_or_run_all_the_same(status: JobStatus, how: str) -> None:
    step = plan([Untold(PARENT)], [child(10, status), child(11, status, RUN)], each=5)

    assert step.cancels == {UUID(int=10): f"parent {PARENT} {how}"}
    assert step.releases == [(PARENT, UUID(int=11))]


def test_a_child_that_is_canceled_with_one_parent_is_not_released_by_another() -> None:
    ranges = [Untold(PARENT), Untold(OTHER)]
    step = plan(ranges, [child(10, FAILED), child(10, COMPLETED, of=1)], each=5)

    assert set(step.cancels) == {UUID(int=10)}
    assert step.releases == []


def test_a_child_that_does_not_wait_is_left_alone() -> None:
    step = plan([Untold(PARENT)], [child(10, FAILED, waits=False, is_locked=False)], each=5)

    assert (step.cancels, step.releases, step.locked, step.left) == ({}, [], [], [])


def test_a_child_that_is_locked_is_noted_alone() -> None:
    step = plan([Untold(PARENT)], [child(10), child(11, is_locked=False)], each=5)

    assert step.releases == [(PARENT, UUID(int=10))]
    assert step.locked == [Untold(PARENT, UUID(int=11), UUID(int=11))]


def test_a_range_goes_on_after_the_last_child_of_the_part() -> None:
    ranges = [Untold(PARENT), Untold(OTHER)]
    step = plan(ranges, [child(10), child(11), child(12, of=1)], each=2)

    assert step.left == [Untold(PARENT, UUID(int=12), LAST_ID)]


def test_a_range_that_ends_with_the_part_is_done() -> None:
    assert plan([Untold(PARENT, UUID(int=10), UUID(int=11))], [child(10), child(11)], each=2).left == []


def test_a_range_without_children_is_done() -> None:
    assert plan([Untold(PARENT)], [], each=1).left == []
