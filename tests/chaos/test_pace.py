"""How slow the machine is, and waiting as long as something gets on."""

from collections.abc import Iterator

import pytest

from pace import MOST, WORK_SECONDS, Pace, slowness, timed, wait_down


def falling(numbers: list[int]) -> Iterator[int]:
    yield from numbers
    while True:
        yield numbers[-1]


@pytest.mark.parametrize(
    ("numbers", "left"),
    [([0], 0), ([3, 2, 1, 0], 0), ([3] * 5 + [2] * 5 + [0], 0), ([2, 5, 1, 4, 0], 0), ([5, 3, 3], 3), ([2, 9], 9)],
)
def test_a_number_is_waited_for_as_long_as_it_falls(numbers: list[int], left: int) -> None:
    seen = falling(numbers)
    assert wait_down(lambda: next(seen), still_seconds=0.2, pause=0.01) == left


def test_what_does_not_fall_below_its_least_is_given_up() -> None:
    """However much it moves, and however often it is looked at."""
    numbers = iter([4, *([5, 4] * 1000)])
    assert wait_down(lambda: next(numbers), still_seconds=0.05, pause=0.001) in (4, 5)


@pytest.mark.parametrize(
    ("seconds", "times"),
    [
        ([], 1.0),
        ([9.0], 1.0),
        ([WORK_SECONDS / 2] * 5, 1.0),
        ([WORK_SECONDS * 3] * 5, 3.0),
        ([WORK_SECONDS] * 19 + [9.0], 1.0),
        ([WORK_SECONDS * 100] * 5, MOST),
    ],
)
def test_the_machine_is_as_slow_as_nine_of_ten_times_say(seconds: list[float], times: float) -> None:
    assert slowness(seconds) == times


def test_the_work_takes_time_and_is_done_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pace.PAUSE_SECONDS", 0.01)
    assert timed() > 0.001
    with Pace() as pace:
        assert wait_down(lambda: len(pace._seconds) < 2, still_seconds=30, pause=0.01) == 0
    assert 1 <= pace.slowness_at_start <= pace.slowness <= MOST
