"""How many wake-ups a process may push: it looks once a second, counts its own, and waits behind what waits."""

from typing import Any, cast

import pytest
import redis

from jobledger.queues.window import Window


class List:
    """Stands for Redis: the length of one list, how often it was asked for, and whether it answers."""

    def __init__(self, length: int = 0) -> None:
        self.length = length
        self.looks = 0
        self.away = False

    def llen(self, _key: str) -> int:
        self.looks += 1
        if self.away:
            raise redis.ConnectionError("away")
        return self.length


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def grant(window: Window, listed: List, wanted: int = 1) -> int:
    return window.grant(cast(Any, listed), "default", wanted)


def test_a_process_looks_once_a_second_and_counts_its_own_pushes_in_between() -> None:
    clock, listed = Clock(), List()
    window = Window(100, clock)

    assert [grant(window, listed, 40) for _ in range(4)] == [40, 40, 20, 0]
    assert listed.looks == 1


def test_once_a_list_is_full_nothing_is_pushed_until_it_is_half_empty() -> None:
    clock, listed = Clock(), List(100)
    window = Window(100, clock)

    for length, granted in ((100, 0), (99, 0), (50, 0), (49, 1)):
        listed.length = length
        assert grant(window, listed) == granted
        clock.now += 1


def test_a_list_that_was_never_full_is_pushed_to_until_it_is() -> None:
    clock, listed = Clock(), List(10)
    window = Window(100, clock)

    for length, granted in ((10, 1), (60, 1), (99, 1), (100, 0)):
        listed.length = length
        assert grant(window, listed) == granted
        clock.now += 1


def test_a_list_that_a_process_has_not_seen_before_counts_as_full_if_it_is_half_full() -> None:
    assert grant(Window(100, Clock()), List(50)) == 0
    assert grant(Window(100, Clock()), List(49)) == 1


def test_what_did_not_fit_is_not_overtaken_by_what_comes_next() -> None:
    clock, listed = Clock(), List()
    window = Window(100, clock)

    assert grant(window, listed, 150) == 100
    listed.length = 60
    clock.now += 1
    assert grant(window, listed) == 0


def test_a_window_of_one_lets_one_through() -> None:
    clock, listed = Clock(), List()
    window = Window(1, clock)

    assert [grant(window, listed), grant(window, listed)] == [1, 0]
    clock.now += 1
    assert grant(window, listed) == 1


def test_a_redis_that_is_away_is_asked_once_a_second() -> None:
    clock, listed = Clock(), List()
    window = Window(100, clock)
    listed.away = True

    with pytest.raises(redis.ConnectionError):
        grant(window, listed)
    assert [grant(window, listed), grant(window, listed)] == [0, 0]
    assert listed.looks == 1

    listed.away = False
    clock.now += 1
    assert grant(window, listed) == 1


def test_a_push_that_failed_closes_all_queues_for_a_second() -> None:
    clock, listed = Clock(), List()
    window = Window(100, clock)
    window.close()

    assert grant(window, listed) == 0
    clock.now += 1
    assert grant(window, listed) == 1
