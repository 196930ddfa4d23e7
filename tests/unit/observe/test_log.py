"""Log lines: one event, one line; the last of them kept with the attempt."""

import logging

import pytest

from jobledger.observe.log import LOG_TAIL_BYTES, LogTail, get_job_logger, get_logger


def test_an_event_and_its_values_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("test.log", queue="low").warning("Not pushed", wakes=3, why="away")

    assert [record.getMessage() for record in caplog.records] == ["Not pushed queue='low' wakes=3 why='away'"]
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].name == "test.log"


@pytest.mark.parametrize("text", ["one\nERROR two", "one\r\nERROR two", "one\rERROR two"])
def test_a_text_with_a_line_break_stays_one_line(text: str, caplog: pytest.LogCaptureFixture) -> None:
    get_logger("test.log").warning(text, value=text)

    assert len(caplog.records[0].getMessage().splitlines()) == 1


def test_what_was_raised_follows_on_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        get_logger("test.log").exception("Failed", job="x")

    first, *others = caplog.records[0].getMessage().splitlines()
    assert first == "Failed job='x'"
    assert others[0].startswith("Traceback")
    assert others[-1] == "ZeroDivisionError: division by zero"


def test_what_a_job_logs_is_kept_without_what_is_known_of_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    tail = LogTail()
    with caplog.at_level(logging.INFO):
        get_job_logger(tail, job_id="1", attempt=2).info("loaded %d", 5, table="flights")

    assert tail.text() == "INFO loaded 5 table='flights'"
    assert "job_id='1'" in caplog.records[0].getMessage()


def test_nothing_logged_is_nothing_kept() -> None:
    assert LogTail().text() is None


def test_the_oldest_lines_are_forgotten_first() -> None:
    tail = LogTail()
    for number in range(20_000):
        tail.append(f"line {number}")

    lines = (tail.text() or "").splitlines()
    assert lines[-1] == "line 19999"
    assert lines == [f"line {number}" for number in range(20_000 - len(lines), 20_000)]
    assert LOG_TAIL_BYTES - 100 < len("\n".join(lines)) <= LOG_TAIL_BYTES


def test_the_last_line_is_kept_however_long_it_is() -> None:
    tail = LogTail()
    tail.append("short")
    tail.append("ä" * LOG_TAIL_BYTES)

    assert tail.text() == "ä" * LOG_TAIL_BYTES


def test_half_a_character_is_written_out() -> None:
    tail = LogTail()
    tail.append("half \ud800")

    assert tail.text() == "half \\ud800"
