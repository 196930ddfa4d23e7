"""Which fire times are fired: on time, missed, or never."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fire_times import CREATED, SECOND, cron, fields, moment
from jobledger.schedules.definition import CatchUp
from jobledger.schedules.policy import MOST_AT_ONCE, Ruling, judge
from jobledger.schedules.triggers import INSTANT, Interval, Once, Trigger, between, last_between

SKIP, LATEST, ALL = CatchUp.SKIP, CatchUp.LATEST, CatchUp.ALL
HOURLY = Interval(3600, moment("2026-01-01 00:00:00"))
GRACE = 15.0


def at(text: str) -> datetime:
    return moment(f"2026-01-01 {text}")


def verdict(
    catch_up: CatchUp, decided: str, now: str, max_lateness: float | None = None, trigger: Trigger = HOURLY
) -> tuple[list[str], str | None]:
    found = judge(trigger, catch_up, max_lateness, at(decided), at(now), GRACE)
    given_up = f"{found.given_up_until:%H:%M:%S.%f}" if found.given_up_until is not None else None
    return [f"{one:%H:%M:%S}" for one in found.fire], given_up


@pytest.mark.parametrize("catch_up", CatchUp)
def test_nothing_is_due_before_its_time(catch_up: CatchUp) -> None:
    assert verdict(catch_up, "10:00:00", "10:59:59.999999") == ([], None)
    assert verdict(catch_up, "11:00:00", "11:00:10") == ([], None)
    assert verdict(catch_up, "12:00:00", "11:00:10") == ([], None)


@pytest.mark.parametrize("catch_up", CatchUp)
@pytest.mark.parametrize("now", ["11:00:00", "11:00:14", "11:00:15"])
def test_what_has_just_come_is_fired_whatever_the_policy(catch_up: CatchUp, now: str) -> None:
    assert verdict(catch_up, "10:00:00", now) == (["11:00:00"], None)


@pytest.mark.parametrize(("catch_up", "expected"), [
    (SKIP, ([], "13:19:44.999999")),
    (LATEST, (["13:00:00"], "12:59:59.999999")),
    (ALL, (["11:00:00", "12:00:00", "13:00:00"], None)),
])  # fmt: skip
def test_missed_fire_times(catch_up: CatchUp, expected: tuple[list[str], str | None]) -> None:
    assert verdict(catch_up, "10:00:00", "13:20:00") == expected


@pytest.mark.parametrize(("catch_up", "expected"), [
    (SKIP, (["13:00:00"], "12:59:59.999999")),
    (LATEST, (["13:00:00"], "12:59:59.999999")),
    (ALL, (["11:00:00", "12:00:00", "13:00:00"], None)),
])  # fmt: skip
def test_missed_fire_times_before_one_that_is_on_time(
    catch_up: CatchUp, expected: tuple[list[str], str | None]
) -> None:
    assert verdict(catch_up, "10:00:00", "13:00:05") == expected


@pytest.mark.parametrize(("catch_up", "max_lateness", "expected"), [
    (LATEST, 1200, ["13:00:00"]),  # exactly as late as it may be
    (LATEST, 1199, []),
    (ALL, 1199, []),
    (ALL, 4800, ["12:00:00", "13:00:00"]),
    (ALL, 4799, ["13:00:00"]),
    (SKIP, 86400, []),
])  # fmt: skip
def test_no_fire_time_is_fired_later_than_its_limit(
    catch_up: CatchUp, max_lateness: float, expected: list[str]
) -> None:
    fire, given_up = verdict(catch_up, "10:00:00", "13:20:00", max_lateness)

    assert fire == expected
    assert given_up is not None


@pytest.mark.parametrize("catch_up", CatchUp)
def test_a_limit_may_be_shorter_than_what_counts_as_on_time(catch_up: CatchUp) -> None:
    assert verdict(catch_up, "10:00:00", "11:00:05", 5) == (["11:00:00"], None)
    assert verdict(catch_up, "10:00:00", "11:00:06", 5)[0] == []


@pytest.mark.parametrize("catch_up", CatchUp)
def test_what_is_given_up_is_given_up_at_once_and_for_good(catch_up: CatchUp) -> None:
    """Also a fire time at the very moment up to which all is given up."""
    once = Once(at("10:00:00"))
    now = at("10:00:00") + timedelta(seconds=GRACE) + INSTANT

    found = judge(once, catch_up, GRACE, at("09:00:00"), now, GRACE)

    assert found == Ruling((), at("10:00:00"))
    assert judge(once, catch_up, GRACE, at("10:00:00"), now, GRACE) == Ruling()


def test_one_look_fires_no_more_than_so_many() -> None:
    every_second = Interval(1, at("00:00:00"))

    found = judge(every_second, ALL, None, at("00:00:00"), at("05:00:00"), GRACE)

    assert found.fire == tuple(at("00:00:00") + n * SECOND for n in range(1, MOST_AT_ONCE + 1))
    assert judge(every_second, SKIP, None, at("00:00:00"), at("05:00:00"), 3600).fire[0] == at("04:00:00")


def test_the_latest_of_a_year_of_seconds_is_found_at_once() -> None:
    every_second = cron("* * * * * *", "Europe/Prague")
    now = moment("2027-01-01 00:00:00.5")

    found = judge(every_second, LATEST, None, at("00:00:00"), now + timedelta(minutes=1), 0)

    assert found.fire == (moment("2027-01-01 00:01:00"),)


# -- look after look

TRIGGERS = (
    Interval(1, CREATED),
    Interval(7.3, CREATED),
    Interval(3600, CREATED),
    cron("*/15 * * * *", "Europe/Prague"),
    cron("30 2 * * *", "Europe/Prague"),
    cron("*/5 * * * * *", "Australia/Lord_Howe"),
    fields("America/New_York", minute="*/20"),
)
STARTS = (moment("2026-03-29 00:50:00"), moment("2026-10-25 00:45:00"), moment("2026-06-01 12:00:00"))


@dataclass
class Looks:
    """What a scheduler does, with looks at any times: it fires a part of what is due, and remembers how far it came.

    Attributes:
        fired: each fire time, with the moment at which it was fired.
        looked: the moments of the looks.
    """

    trigger: Trigger
    catch_up: CatchUp
    max_lateness: float | None
    grace: float
    decided: datetime
    fired: list[tuple[datetime, datetime]] = field(default_factory=list)
    looked: list[datetime] = field(default_factory=list)

    def look(self, now: datetime, most: int) -> Ruling:
        before = self.decided
        verdict = judge(self.trigger, self.catch_up, self.max_lateness, before, now, self.grace)
        for fire_at in verdict.fire[:most]:
            self.fired.append((fire_at, now))
            self.decided = fire_at
        if verdict.given_up_until is not None:
            assert verdict.given_up_until > before
            if not verdict.fire:
                self.decided = verdict.given_up_until
        assert all(before < one <= now for one in verdict.fire)
        assert before <= self.decided <= now or not verdict.fire
        self.looked.append(now)
        return verdict


@st.composite
def looks(draw: st.DrawFn) -> Looks:
    start = draw(st.sampled_from(STARTS))
    made = Looks(
        draw(st.sampled_from(TRIGGERS)),
        draw(st.sampled_from(CatchUp)),
        draw(st.one_of(st.none(), st.floats(1, 7200))),
        draw(st.floats(1, 120)),
        start,
    )
    now = start
    waits = st.one_of(st.floats(0, 3), st.floats(0, 60), st.floats(0, 7200))
    for wait, most in draw(st.lists(st.tuples(waits, st.integers(1, MOST_AT_ONCE)), min_size=1, max_size=25)):
        now += timedelta(seconds=wait)
        made.look(now, most)
    return made


@given(looks())
def test_no_fire_time_is_fired_twice_or_before_an_earlier_one(done: Looks) -> None:
    assert all(earlier < later for (earlier, _), (later, _) in pairwise(done.fired))


@given(looks())
def test_only_fire_times_are_fired_and_never_too_early_or_too_late(done: Looks) -> None:
    for fire_at, now in done.fired:
        assert done.trigger.next_after(fire_at - INSTANT) == fire_at
        assert fire_at <= now
        if done.max_lateness is not None:
            assert now - fire_at <= timedelta(seconds=done.max_lateness)


@given(looks())
def test_skip_fires_only_what_is_on_time(done: Looks) -> None:
    if done.catch_up is SKIP:
        assert all(now - fire_at <= timedelta(seconds=done.grace) for fire_at, now in done.fired)


@given(looks())
def test_latest_fires_at_most_one_missed_fire_time_in_a_look(done: Looks) -> None:
    missed = Counter(now for fire_at, now in done.fired if now - fire_at > timedelta(seconds=done.grace))

    if done.catch_up is LATEST:
        assert all(count == 1 for count in missed.values())


@given(
    st.sampled_from(TRIGGERS),
    st.sampled_from(STARTS),
    st.lists(st.one_of(st.floats(0, 3), st.floats(0, 7200)), min_size=1, max_size=8),
)
def test_all_loses_none_whenever_the_looks_are(trigger: Trigger, start: datetime, waits: list[float]) -> None:
    done = Looks(trigger, ALL, None, GRACE, start)
    now = start
    for wait in waits:
        now += timedelta(seconds=wait)
        while len(done.look(now, MOST_AT_ONCE).fire) == MOST_AT_ONCE:
            pass  # what is more waits for the next look

    assert [fire_at for fire_at, _ in done.fired] == list(between(trigger, start, now, 100_000))


@given(
    st.sampled_from(TRIGGERS),
    st.sampled_from(STARTS),
    st.sampled_from(CatchUp),
    st.lists(st.floats(0.01, GRACE - 0.01), min_size=1, max_size=60),
)
def test_who_looks_often_enough_fires_every_fire_time(
    trigger: Trigger, start: datetime, catch_up: CatchUp, waits: list[float]
) -> None:
    done = Looks(trigger, catch_up, GRACE, GRACE, start)
    now = start
    for wait in waits:
        now += timedelta(seconds=wait)
        assert done.look(now, MOST_AT_ONCE).given_up_until is None

    assert [fire_at for fire_at, _ in done.fired] == list(between(trigger, start, now, 100_000))


@given(st.sampled_from(TRIGGERS), st.sampled_from(STARTS), st.sampled_from([LATEST, ALL]), st.floats(0, 7200))
def test_after_an_outage_the_newest_fire_time_is_fired(
    trigger: Trigger, start: datetime, catch_up: CatchUp, outage: float
) -> None:
    now = start + timedelta(seconds=outage)
    done = Looks(trigger, catch_up, None, GRACE, start)
    while done.look(now, MOST_AT_ONCE).fire:
        pass

    newest = done.fired[-1][0] if done.fired else None
    assert newest == last_between(trigger, start, now)
