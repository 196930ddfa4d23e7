"""What commands print: any text is shown on one line and interpreted by nobody."""

import contextlib
import json
import os
import pty
import re
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobledger import JobStatus
from jobledger.cli.output import confirm, escaped, print_json, progress, say, say_block, show_table

HOSTILE = "[red]a\x1b[31mb\r\nc\u202ed\u2028e\x9bf\x00g\ud800[/red]"
SEEN = r"[red]a\x1b[31mb\r\nc\u202ed\u2028e\x9bf\x00g\ud800[/red]"
NEVER_SEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}

anything = st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]))


@given(anything)
def test_no_text_holds_anything_that_acts(text: str) -> None:
    assert not NEVER_SEEN & {unicodedata.category(one) for one in escaped(text)}


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert escaped(f"{text} {text}") == f"{text} {text}"


def test_what_is_not_to_be_seen_is_written_out() -> None:
    assert escaped(HOSTILE) == SEEN


@pytest.mark.parametrize("show", [say, lambda text: say_block("x", text), lambda text: show_table(("A",), [(text,)])])
def test_every_way_to_print_escapes(show: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    show(HOSTILE.replace("\n", ""))

    assert SEEN.replace(r"\n", "") in capsys.readouterr().out


def test_a_line_of_a_block_cannot_be_taken_for_a_line_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    say_block("Log of attempt 1", "one\nLog of attempt 2:\r\n")

    assert capsys.readouterr().out == "Log of attempt 1:\n    one\n    Log of attempt 2:\\r\n    \n"


# -- tables


def test_a_table_in_a_pipe_is_plain_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("ID", "NAME"), [(1, "x" * 300), (22, None), (3, "名前"), (4, "[bold]b")])

    assert capsys.readouterr().out.split("\n") == [
        "ID  NAME",
        "1   " + "x" * 300,
        "22  -",
        "3   名前",
        "4   [bold]b",
        "",
    ]


@given(st.lists(st.tuples(anything, anything)))
def test_a_table_has_one_line_for_each_row(rows: list[tuple[str, str]]) -> None:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "echo", lines.append)
        show_table(("A", "B"), rows)

    assert len(lines) == 1 + len(rows)
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "-"),
        (JobStatus.FAILED, "failed"),
        (0.25, "0.25"),
        (600.0, "600"),
        (7, "7"),
        (UUID(int=5), str(UUID(int=5))),
        ({"ä": "\n"}, r'{"ä": "\n"}'),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))), "2026-01-02 02:04:05"),
    ],
)
def test_a_value_is_shown_as_people_read_it(value: object, cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("A",), [(value,)])

    assert capsys.readouterr().out == f"A\n{cell}\n"


def on_a_terminal(print_it: Callable[[], None], *, stream: str, **environment: str) -> str:
    """What arrives at a terminal of 100 columns."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen:
        with os.fdopen(follower, "w", encoding="utf-8") as terminal, pytest.MonkeyPatch.context() as patch:
            for name, value in {"TERM": "xterm", "COLUMNS": "100", **environment}.items():
                patch.setenv(name, value)
            patch.setattr(sys, stream, terminal)
            print_it()
        seen = b""
        with contextlib.suppress(OSError):  # all was read: nobody has the terminal open any more
            while part := screen.read(65536):
                seen += part
        return seen.decode()


def test_a_table_on_a_terminal_has_colours_but_none_of_the_ledger_s() -> None:
    seen = on_a_terminal(lambda: show_table(("ID", "STATUS"), [(HOSTILE, "failed")]), stream="stdout")

    assert "\x1b[31mfailed" in seen
    assert SEEN in re.sub(r"\x1b\[[\d;]*m", "", seen)


def test_without_colours_a_table_on_a_terminal_has_none() -> None:
    seen = on_a_terminal(lambda: show_table(("ID",), [("failed",)]), stream="stdout", NO_COLOR="1")

    assert not re.search(r"\x1b\[3\d", seen)


def test_on_a_narrow_terminal_an_id_stays_whole() -> None:
    job_id = str(UUID(int=2**127))
    seen = on_a_terminal(lambda: show_table(("ID", "X"), [(job_id, "y" * 200)]), stream="stdout", COLUMNS="60")

    assert job_id in seen
    assert seen.count("y") == 200


# -- JSON


@given(st.dictionaries(anything, anything))
def test_json_is_one_document_in_ascii(value: dict[str, str]) -> None:
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "echo", printed.append)
        print_json(value)

    assert json.loads(printed[0]) == value
    assert printed[0].isascii()
    assert not NEVER_SEEN & {unicodedata.category(one) for one in printed[0].replace("\n", "")}


def test_json_has_moments_ids_and_words_as_texts(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"at": datetime(2026, 1, 2, tzinfo=UTC), "id": UUID(int=5), "status": JobStatus.QUEUED})

    assert json.loads(capsys.readouterr().out) == {
        "at": "2026-01-02T00:00:00+00:00",
        "id": "00000000-0000-0000-0000-000000000005",
        "status": "queued",
    }


# -- bars and questions


def test_a_bar_is_shown_on_a_terminal() -> None:
    def work() -> None:
        with progress(f"Working {HOSTILE}", 2) as advance:
            advance()
            advance()

    seen = on_a_terminal(work, stream="stderr", COLUMNS="200")
    assert "2/2" in seen
    assert SEEN in re.sub(r"\x1b\[[\d;]*m", "", seen)


def test_elsewhere_no_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Working", 1) as advance:
        advance()

    assert capsys.readouterr() == ("", "")


def test_where_nobody_can_be_asked_yes_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        with pytest.raises(click.UsageError, match="--yes"):
            confirm("Delete all?", yes=False)
        confirm("Delete all?", yes=True)
