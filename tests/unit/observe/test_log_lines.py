"""Records become lines: one record each, whatever their texts hold."""

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from io import StringIO
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from jobledger.observe.log import LineHandler, get_logger
from jobledger.observe.log_lines import LineFormatter, labelled_json, without_passwords
from jobledger.observe.log_run import LoggedRun, LogTail

JOB_ID = "0192e5a0-0000-7000-8000-00000000000a"
HOSTILE = (
    "\n2026-01-01T00:00:00.000Z INFO    fake: line\r\x1b[2J\x00\x07\t\x7f\x85\x9b"
    "\u061c\u200f\u2028\u2029\u202e\u2066\ud800"
)
NOT_ALLOWED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
RECORD = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[\w.]+( \[[^]]+\])?: "
)

texts = st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from(HOSTILE)), max_size=40)
values = st.recursive(
    st.one_of(texts, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.uuids(), st.datetimes()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(texts, st.integers()), inner, max_size=3),
    max_leaves=5,
)


@contextlib.contextmanager
def lines(layout: str, name: str = "test.lines") -> Iterator[StringIO]:
    """What the logger of this name writes, of any level, and no other handler sees."""
    stream = StringIO()
    handler = LineHandler(stream)
    handler.setFormatter(LineFormatter(layout))
    logger = logging.getLogger(name)
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        logger.manager._clear_cache()  # type: ignore[attr-defined]


def a_run() -> LoggedRun:
    return LoggedRun(JOB_ID, "Sample", 2, "etl", LogTail(), whole_process=False)


def only_object(stream: StringIO) -> dict[str, Any]:
    written = stream.getvalue()
    assert written.endswith("\n")
    assert len(written[:-1].splitlines()) == 1
    assert written.isascii()
    assert not NOT_ALLOWED.search(written)
    parsed = json.loads(written, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert isinstance(parsed, dict)
    return parsed


def assert_one_record(written: str) -> None:
    assert written.endswith("\n")
    assert not NOT_ALLOWED.search(written)
    first, *others = written[:-1].split("\n")
    assert RECORD.match(first)
    assert all(line.startswith("  | ") for line in others)


def log_everything(event: str, key: str, value: object, message: str, *, ours: bool) -> None:
    """One record with all of it, by our loggers or by the standard library's."""
    log, stranger = get_logger("test.lines"), logging.getLogger("test.lines")
    try:
        raise ValueError(message)
    except ValueError as error:
        if ours:
            log._proxy_to_logger("error", event, **{"exc_info": error, f"k{key}": value})
        else:
            stranger.error("%s", event, exc_info=error, extra={f"k{key}": value})


@pytest.mark.parametrize("ours", [True, False])
@given(event=texts, key=texts, value=values, message=texts)
def test_any_text_is_one_record_for_people(event: str, key: str, value: object, message: str, ours: bool) -> None:
    with lines("text") as stream:
        log_everything(event, key, value, message, ours=ours)
    assert_one_record(stream.getvalue())

    with lines("text") as stream, a_run():
        log_everything(event, key, value, message, ours=ours)
    assert_one_record(stream.getvalue())


@pytest.mark.parametrize("ours", [True, False])
@given(event=texts, key=texts, value=values, message=texts)
def test_any_text_is_one_json_object(event: str, key: str, value: object, message: str, ours: bool) -> None:
    with lines("json") as stream, a_run():
        log_everything(event, key, value, message, ours=ours)

    parsed = only_object(stream)
    if "://" not in event:
        assert parsed["event"] == event.encode("utf-8", "backslashreplace").decode()
    assert parsed["exception"].startswith("Traceback")
    assert parsed["job_id"] == JOB_ID


@given(text=texts)
def test_any_line_of_another_program_is_one_json_object(text: str) -> None:
    assert only_object(StringIO(labelled_json("redis", text) + "\n"))["program"] == "redis"


def test_a_record_says_when_where_and_what() -> None:
    before = time.time()
    with lines("json") as stream:
        get_logger("test.lines").warning("Not pushed", wakes=3, why="away")

    parsed = only_object(stream)
    assert before - 0.001 <= datetime.fromisoformat(parsed.pop("time")).timestamp() <= time.time()
    assert parsed == {"level": "warning", "logger": "test.lines", "event": "Not pushed", "wakes": 3, "why": "away"}


def test_the_same_for_people() -> None:
    record = logging.LogRecord("some.library", logging.INFO, "x.py", 1, "read %d rows", (5,), None)
    record.created = datetime(2026, 1, 31, 9, 0, 0, 123_900, tzinfo=UTC).timestamp()

    with a_run():
        line = LineFormatter("text").format(record)

    assert re.sub(r"seconds=[\d.]+", "seconds=0.1", line) == (
        f"2026-01-31T09:00:00.123Z INFO    some.library [job_id={JOB_ID} job_type=Sample attempt=2 queue=etl "
        "duration_seconds=0.1 status=started]: read 5 rows"
    )


def test_what_was_raised_is_one_text_in_json() -> None:
    with lines("json") as stream:
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            logging.getLogger("test.lines").exception("Failed")

    first, *_, second_last, last = only_object(stream)["exception"].split("\n")
    assert (first, second_last, last) == ("Traceback (most recent call last):", "ValueError: one", "two")


def test_values_that_json_does_not_know_are_put_into_words() -> None:
    one = uuid.UUID(JOB_ID)

    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    circle: list[object] = []
    circle.append(circle)
    with lines("json") as stream:
        get_logger("test.lines").info(
            "values", id=one, day=date(2026, 1, 31), rows=[one], bad=Unprintable(), nan=float("nan"), circle=circle
        )

    parsed = only_object(stream)
    assert parsed["id"] == f"UUID('{JOB_ID}')"  # NaN has no JSON: then each value is as Python writes it
    assert (parsed["nan"], parsed["circle"]) == ("nan", "[[...]]")
    assert parsed["bad"] == "<Unprintable that cannot be printed: RuntimeError>"

    with lines("json") as stream:
        get_logger("test.lines").info("values", id=one, day=date(2026, 1, 31), rows=[one], bad=Unprintable())

    parsed = only_object(stream)
    assert (parsed["id"], parsed["day"], parsed["rows"]) == (JOB_ID, "2026-01-31", [JOB_ID])


def test_a_value_cannot_take_the_place_of_what_every_line_says() -> None:
    with lines("json") as stream, a_run():
        get_logger("test.lines").info("fetched", status=200, level=3, queue="etl")

    parsed = only_object(stream)
    assert (parsed["status"], parsed["own_status"]) == ("started", 200)
    assert (parsed["level"], parsed["own_level"]) == ("info", 3)
    assert "own_queue" not in parsed  # it says the same


def test_extra_values_of_the_standard_library_s_records_are_kept() -> None:
    with lines("json") as stream:
        logging.getLogger("test.lines").info("asked", extra={"path": "/x", "event": "mine", "color_message": "\x1b[1m"})

    parsed = only_object(stream)
    assert (parsed["event"], parsed["path"], parsed["own_event"]) == ("asked", "/x", "mine")
    assert "color_message" not in parsed


def test_what_a_library_binds_to_its_context_is_kept() -> None:
    with lines("json") as stream, structlog.contextvars.bound_contextvars(request="r1"):
        logging.getLogger("test.lines").info("asked")

    assert only_object(stream)["request"] == "r1"


def test_a_record_that_cannot_be_shown_is_said_in_one_record() -> None:
    with lines("json") as stream:
        logging.getLogger("test.lines").info("%d rows", "many\n")

    parsed = only_object(stream)
    assert parsed["event"] == "A record cannot be shown"
    assert parsed["template"] == "'%d rows'"
    assert parsed["error"].startswith("TypeError(")
    assert "test_log_lines.py:" in parsed["at"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:s3cret@host:6379/0", "redis://:***@host:6379/0"),
        ("to postgresql+psycopg2://me:p@s/s:w@db/x, then", "to postgresql+psycopg2://me:***@db/x, then"),
        ("a redis://:one@a b postgres://u:two@b", "a redis://:***@a b postgres://u:***@b"),
        ("http://host:8000/users/@me", "http://host:8000/users/@me"),
        ("mail to me@host about http://host", "mail to me@host about http://host"),
        ("https://me@host/x", "https://me@host/x"),
    ],
)
def test_passwords_in_urls_are_not_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize("layout", ["text", "json", "tail"])
def test_no_password_shows_wherever_it_stands(layout: str) -> None:
    url = "redis://:s3cr\"et'@host:6379/0"
    with lines(layout) as stream:
        try:
            raise ConnectionError(f"no answer from {url}")
        except ConnectionError:
            get_logger("test.lines").exception(f"away: {url}", url=url, more={"urls": [url, "x@y"]})

    assert "s3cr" not in stream.getvalue()
    assert "x@y" in stream.getvalue()


@pytest.mark.parametrize("text", ["://:" * 250_000, "://a:" + "x" * 1_000_000, "://:@" * 200_000, "@://" * 250_000])
def test_a_text_made_for_it_does_not_stop_the_search_for_passwords(text: str) -> None:
    before = time.process_time()
    without_passwords(text + "@")
    assert time.process_time() - before < 5  # it takes a tenth of a second; what grows with the square takes hours


def test_rq_s_traceback_is_shown_as_one_and_its_colours_are_not() -> None:
    with lines("text", "rq.worker") as stream:
        logging.getLogger("rq.worker").error(
            "job %s raised (%s)\n%s", "\x1b[32mx\x1b[39;49;00m", "f", "Traceback\n  y\n"
        )

    first, *others = stream.getvalue().splitlines()
    assert first.endswith("rq.worker: job x raised (f)")
    assert others == ["  | Traceback", "  |   y"]


def test_rq_s_lines_about_a_job_name_it() -> None:
    with lines("json", "rq.worker") as stream:
        logging.getLogger("rq.worker").info("Worker %s: %s: %s (%s)", "name", "low", "Sample: x", JOB_ID)
    assert only_object(stream)["job_id"] == JOB_ID

    with lines("json", "rq.worker") as stream:
        logging.getLogger("rq.worker").info("Worker %s: cleaning registries for queue: %s", JOB_ID, "low")
    assert "job_id" not in only_object(stream)
