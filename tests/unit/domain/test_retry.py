"""The arithmetic of retries."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from jobledger import ConfigurationError, OptionError, Retry, Snooze
from jobledger.domain.retry import JITTER


@pytest.mark.parametrize(
    ("retry", "waits"),
    [
        (Retry(9), [2, 4, 8, 16]),
        (Retry(9, base=5), [5, 25, 125]),
        (Retry(9, base=1), [1, 1, 1]),
        (Retry(9, base=5, cap=100), [5, 25, 100, 100]),
        (Retry(9, backoff="linear", base=30), [30, 60, 90]),
        (Retry(9, backoff="linear", base=30, cap=70), [30, 60, 70]),
        (Retry(9, backoff="fixed", base=7), [7, 7, 7]),
        (Retry(9, backoff="fixed", base=70, cap=7), [7, 7]),
    ],
)
def test_the_nth_retry_waits(retry: Retry, waits: list[float]) -> None:
    assert [retry.wait_seconds(number) for number in range(1, len(waits) + 1)] == waits


@pytest.mark.parametrize("backoff", ["exponential", "linear", "fixed"])
def test_the_highest_number_of_attempts_waits_for_the_cap(backoff: Any) -> None:
    assert Retry(1000, backoff=backoff, base=601, cap=600).wait_seconds(999) == 600


def test_a_number_too_big_for_a_float_waits_for_the_cap() -> None:
    assert Retry(base=10).wait_seconds(10**6) == 600


@given(wait=some.floats(0.001, 1e6))
def test_jitter_makes_a_wait_longer_by_less_than_a_quarter(wait: float) -> None:
    assert wait <= Retry(jitter=True).jittered(wait) <= wait * (1 + JITTER)


def test_jitter_spreads() -> None:
    waits = {Retry(jitter=True).jittered(100) for _ in range(100)}

    assert len(waits) > 90
    assert max(waits) - min(waits) > 10
    assert max(waits) < 125


def test_without_jitter_a_wait_is_exact() -> None:
    assert {Retry(jitter=False).jittered(100) for _ in range(10)} == {100}


@pytest.mark.parametrize(
    ("retry", "error", "allowed"),
    [
        (Retry(), ValueError(), True),
        (Retry(), TimeoutError(), True),
        (Retry(), SystemExit(), False),
        (Retry(), KeyboardInterrupt(), False),
        (Retry(on=(OSError,)), ConnectionError(), True),
        (Retry(on=(OSError,)), ValueError(), False),
        (Retry(on=OSError), ConnectionError(), True),
        (Retry(on=()), ValueError(), False),
        (Retry(on=(BaseException,)), SystemExit(), True),
        (Retry(give_up_on=(LookupError,)), KeyError(), False),
        (Retry(give_up_on=KeyError), KeyError(), False),
        (Retry(give_up_on=KeyError), IndexError(), True),
        (Retry(on=(LookupError,), give_up_on=(LookupError,)), KeyError(), False),
    ],
)
def test_which_errors_are_retried(retry: Retry, error: BaseException, allowed: bool) -> None:
    assert retry.allows(error) is allowed


@pytest.mark.parametrize(
    "values",
    [
        {"max_attempts": 0},
        {"max_attempts": 1001},
        {"max_attempts": "3"},
        {"max_attempts": 2.5},
        {"max_attempts": True},
        {"base": "2"},
        {"cap": None},
        {"jitter": "no"},
        {"on": None},
        {"on": "ValueError"},
        {"backoff": "fibonacci"},
        {"base": 0},
        {"base": -1},
        {"cap": 0},
        {"cap": -1},
        {"on": ("ValueError",)},
        {"on": (int,)},
        {"give_up_on": (ValueError(),)},
        {"give_up_on": int},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        Retry(**values)


@pytest.mark.parametrize("name", ["base", "cap"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_wait_that_no_calendar_has_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Retry(**{name: value})


def test_a_cap_beyond_every_calendar_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cap"):
        Retry(cap=1e12)


def test_an_error_that_asks_for_a_retry_says_when() -> None:
    error = Retry.in_("1m30s", "busy")

    assert (error.wait_seconds, str(error)) == (90, "busy")


@pytest.mark.parametrize("delay", ["soon", -1, None])
def test_a_wait_that_is_no_length_of_time_is_refused(delay: Any) -> None:
    with pytest.raises(OptionError):
        Retry.in_(delay)
    with pytest.raises(OptionError):
        Snooze(delay)
