"""Failpoints: what can be said, and that a marker lets one process act once."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from jobledger import failpoints
from jobledger.errors import ConfigurationError
from jobledger.failpoints import VARIABLE, Action, Failpoint, FailpointReached, Plan, is_planned, parse, reach


@pytest.fixture(autouse=True)
def _unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints._Process, "plans", None)


def test_nothing_is_planned_by_default() -> None:
    for place in Failpoint:
        assert not is_planned(place)
        reach(place)


def test_several_places_can_be_planned() -> None:
    assert parse(" after_claim=kill:/tmp/x:y , before_push=raise,") == {
        Failpoint.AFTER_CLAIM: Plan(Action.KILL, "/tmp/x:y"),
        Failpoint.BEFORE_PUSH: Plan(Action.RAISE, None),
    }


@pytest.mark.parametrize("text", ["after_claim", "after_claim=explode", "nowhere=kill", "=kill"])
def test_what_does_not_exist_is_refused_with_what_does(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"place=action.*after_insert.*Actions: kill, freeze, raise"):
        parse(text)


def test_raise_raises_there_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "after_claim=raise")
    assert [place for place in Failpoint if is_planned(place)] == [Failpoint.AFTER_CLAIM]
    reach(Failpoint.BEFORE_FINISH)
    for _ in range(2):
        with pytest.raises(FailpointReached, match="after_claim"):
            reach(Failpoint.AFTER_CLAIM)


def test_with_a_marker_only_the_first_acts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marker = tmp_path / "once"
    monkeypatch.setenv(VARIABLE, f"after_claim=raise:{marker}")
    with pytest.raises(FailpointReached):
        reach(Failpoint.AFTER_CLAIM)
    assert marker.read_text() == str(os.getpid())
    reach(Failpoint.AFTER_CLAIM)


def test_kill_leaves_the_process_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "after_claim=kill")
    child = multiprocessing.get_context("spawn").Process(target=reach, args=(Failpoint.AFTER_CLAIM,))
    child.start()
    child.join(20)
    assert child.exitcode == -signal.SIGKILL
