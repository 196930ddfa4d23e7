"""A schedule's definition as data: written by one process, read by another."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fire_times import CREATED, CRONS, FIELDS, ZONES, moment, moments
from jobledger import ScheduleError
from jobledger.schedules.definition import CatchUp, Definition, Overlap, When
from jobledger.schedules.triggers import CronFields, CronText, Interval, Once, OnWall

NIGHTLY = Definition("nightly", When("Europe/Prague", cron="0 2 * * *"), "jobs.nightly")


def all_whens() -> st.SearchStrategy[When]:
    bounds = st.one_of(st.none(), moments)
    return st.one_of(
        st.builds(When, st.sampled_from(ZONES), cron=st.sampled_from(CRONS), start=bounds, end=bounds),
        st.builds(
            When,
            st.sampled_from(ZONES),
            cron_fields=st.sampled_from(FIELDS).map(
                lambda given: tuple(sorted((name, str(value)) for name, value in given.items()))
            ),
            start=bounds,
            end=bounds,
        ),
        st.builds(When, st.sampled_from(ZONES), every_seconds=st.floats(1, 1e8), start=bounds, end=bounds),
        st.builds(When, st.sampled_from(ZONES), at=moments),
    )


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
definitions = st.builds(
    Definition,
    name=texts,
    when=all_whens(),
    target=texts,
    catch_up=st.sampled_from(CatchUp),
    max_lateness_seconds=st.one_of(st.none(), st.floats(1, 1e9)),
    overlap=st.sampled_from(Overlap),
    jitter_seconds=st.floats(0, 86400),
    payload=st.one_of(st.none(), st.dictionaries(texts, json_values, max_size=4)),
    options=st.dictionaries(st.sampled_from(["queue", "title", "owner"]), texts),
)


@given(definitions)
def test_a_definition_comes_back_from_json_as_it_was(definition: Definition) -> None:
    stored = json.loads(json.dumps(definition.as_json()))

    again = Definition.from_json(definition.name, stored)

    assert again == definition
    assert again.fingerprint == definition.fingerprint
    assert again.as_json() == definition.as_json()


@given(definitions, moments)
def test_a_definition_that_came_back_fires_at_the_same_times(definition: Definition, since: datetime) -> None:
    again = Definition.from_json(definition.name, json.loads(json.dumps(definition.as_json())))

    assert again.when.trigger(CREATED) == definition.when.trigger(CREATED)
    assert again.when.trigger(CREATED).next_after(since) == definition.when.trigger(CREATED).next_after(since)


def test_what_is_not_said_is_not_stored_about_the_fire_times() -> None:
    assert NIGHTLY.as_json() == {
        "target": "jobs.nightly",
        "when": {"timezone": "Europe/Prague", "cron": "0 2 * * *"},
        "catch_up": "latest",
        "max_lateness_seconds": None,
        "overlap": "allow",
        "jitter_seconds": 0.0,
        "payload": None,
        "options": {},
    }


def test_another_definition_has_another_fingerprint() -> None:
    others = [
        NIGHTLY,
        replace(NIGHTLY, when=replace(NIGHTLY.when, cron="0 3 * * *")),
        replace(NIGHTLY, when=replace(NIGHTLY.when, timezone="UTC")),
        replace(NIGHTLY, when=replace(NIGHTLY.when, end=CREATED)),
        replace(NIGHTLY, when=When("UTC", cron_fields=(("hour", "2"),))),
        replace(NIGHTLY, when=When("UTC", every_seconds=60)),
        replace(NIGHTLY, when=When("UTC", at=CREATED)),
        replace(NIGHTLY, target="jobs.other"),
        replace(NIGHTLY, catch_up=CatchUp.ALL),
        replace(NIGHTLY, max_lateness_seconds=60),
        replace(NIGHTLY, overlap=Overlap.SKIP),
        replace(NIGHTLY, jitter_seconds=5),
        replace(NIGHTLY, payload={}),
        replace(NIGHTLY, options={"queue": "low"}),
    ]

    assert all(one.fingerprint != other.fingerprint for one, other in combinations(others, 2))


def test_the_order_of_a_payload_is_not_part_of_it() -> None:
    one, other = replace(NIGHTLY, payload={"a": 1, "b": 2}), replace(NIGHTLY, payload={"b": 2, "a": 1})

    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("change", [
    {"catch_up": "some"}, {"overlap": "never"}, {"colour": "red"}, {"when": None}, {"when": "0 2 * * *"},
    {"when": {"timezone": "UTC", "moon": "full"}}, {"when": {"timezone": "UTC", "at": "tomorrow"}},
    {"when": {"timezone": "UTC", "at": 5}}, {"when": {"cron": "0 2 * * *"}},
    {"when": {"timezone": "UTC", "cron_fields": ["hour"]}},
])  # fmt: skip
def test_what_a_newer_version_wrote_is_refused_with_what_to_do(change: dict[str, Any]) -> None:
    stored = {**NIGHTLY.as_json(), **change}

    with pytest.raises(
        ScheduleError, match=r"schedule 'nightly' in the ledger is not understood.*upgrade this process"
    ):
        Definition.from_json("nightly", stored)


@pytest.mark.parametrize("stored", [{}, {"when": {"timezone": "UTC", "cron": "0 2 * * *"}}])
def test_what_lacks_something_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError, match="not understood"):
        Definition.from_json("nightly", stored)


# -- triggers


@pytest.mark.parametrize(("when", "trigger"), [
    (When("UTC", cron="0 2 * * *"), OnWall(CronText("0 2 * * *"), ZoneInfo("UTC"))),
    (When("UTC", cron_fields=(("hour", "2"),), end=CREATED),
     OnWall(CronFields((("hour", "2"),)), ZoneInfo("UTC"), None, CREATED)),
    (When("UTC", every_seconds=60), Interval(60, CREATED)),
    (When("UTC", every_seconds=60, start=moment("2020-01-01 00:00:00")),
     Interval(60, moment("2020-01-01 00:00:00"), moment("2020-01-01 00:00:00"))),
    (When("UTC", at=CREATED), Once(CREATED)),
])  # fmt: skip
def test_the_trigger_of_a_definition(when: When, trigger: object) -> None:
    assert when.trigger(CREATED) == trigger


def test_an_interval_keeps_its_length_whatever_the_time_zone_of_its_creation() -> None:
    """A moment with a zone's clock on it adds hours as that clock shows them."""
    created = moment("2026-03-29 00:30:00").astimezone(ZoneInfo("Europe/Prague"))

    fires = When("UTC", every_seconds=3600).trigger(created).next_after(created + timedelta(0))

    assert (fires, fires.tzinfo if fires else None) == (moment("2026-03-29 01:30:00"), UTC)


@pytest.mark.parametrize("when", [
    When("Mars/Olympus", cron="0 2 * * *"), When("Mars/Olympus", cron_fields=(("hour", "2"),)),
    When("Mars/Olympus", every_seconds=60), When("Mars/Olympus", at=CREATED), When("../etc/passwd", at=CREATED),
    When("", at=CREATED), When("Europe", at=CREATED),
])  # fmt: skip
def test_a_time_zone_that_is_not_known_here_is_a_schedule_error(when: When) -> None:
    """Another machine may have written it, with newer time zones."""
    with pytest.raises(ScheduleError, match=r"has no time zone .*tzdata"):
        when.trigger(CREATED)


@pytest.mark.parametrize(
    "when", [When("UTC"), When("UTC", cron="0 2 * * * * * *"), When("UTC", cron_fields=(("hour", "25"),))]
)
def test_fire_times_that_are_not_understood_here_are_a_schedule_error(when: When) -> None:
    with pytest.raises(ScheduleError):
        when.trigger(CREATED)


# -- text


@pytest.mark.parametrize(("when", "text"), [
    (When("UTC", cron="0 2 * * *"), "0 2 * * *"),
    (When("UTC", cron_fields=(("day_of_week", "mon-fri"), ("hour", "1"))), "cron day_of_week=mon-fri hour=1"),
    (When("UTC", every_seconds=5400.0), "every 1 hour 30 minutes"),
    (When("UTC", at=CREATED), "at 2013-01-01T10:07:30+00:00"),
])  # fmt: skip
def test_the_expression_in_one_line(when: When, text: str) -> None:
    assert when.text == text
