"""How a process sets up its logs; the loggers of ours and of jobs."""

import io
import json
import logging
import logging.config
import subprocess
import sys

import pytest
from rq.exceptions import StopRequested

from jobledger.observe.log import LineHandler, TailHandler, get_job_logger, get_logger, logging_config
from jobledger.observe.log_lines import LineFormatter
from jobledger.observe.log_run import LoggedRun, LogTail
from jobledger.settings import Settings


def test_an_event_and_its_values_are_one_line_also_for_formatters_that_are_not_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    get_logger("test.log", queue="low").warning("Not pushed", wakes=3, why="away\nX")

    assert [record.getMessage() for record in caplog.records] == ["Not pushed queue='low' wakes=3 why='away\\nX'"]
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].name == "test.log"


@pytest.mark.parametrize("text", ["one\nERROR two", "one\r\nERROR two", "one\rERROR two", "one\u2028ERROR two"])
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
    assert others[0].startswith("  | Traceback")
    assert others[-1] == "  | ZeroDivisionError: division by zero"


def test_a_line_below_the_level_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    class NotToBeShown:
        def __repr__(self) -> str:
            raise AssertionError("nobody wants to see this")

    with caplog.at_level(logging.WARNING):
        get_logger("test.log").info("quiet", value=NotToBeShown())

    assert not caplog.records


def test_what_a_job_logs_is_kept_without_what_is_known_of_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    tail = LogTail()
    with caplog.at_level(logging.INFO):
        get_job_logger(tail, job_id="1", attempt=2).info("loaded %d", 5, table="flights")

    assert tail.text() == "INFO loaded 5 table='flights'"
    assert "job_id='1'" in caplog.records[0].getMessage()


def test_what_libraries_log_inside_a_run_is_kept_too(caplog: pytest.LogCaptureFixture) -> None:
    handler = TailHandler(logging.INFO)
    handler.setFormatter(LineFormatter("tail"))
    logger = logging.getLogger("test.library")
    logger.addHandler(handler)
    tail = LogTail()
    try:
        with caplog.at_level(logging.DEBUG):
            logger.info("before")
            with LoggedRun("id", "Sample", 1, "low", tail, whole_process=False) as run:
                logger.debug("too small")
                logger.info("read %d rows\n", 5, extra={"table": "flights"})
                run.ended("completed")
                logger.info("after")
    finally:
        logger.removeHandler(handler)

    assert tail.text() == "INFO test.library: read 5 rows\\n table='flights'"


PROGRAM = """
import logging, sys, threading, warnings, structlog
from jobledger.observe.log import set_up_logging
from jobledger.settings import Settings
set_up_logging(Settings(log_format=sys.argv[1], log_level="info"))
logging.getLogger("some.library").info("library")
logging.getLogger("apscheduler.executors").info("every look at the clock")
structlog.get_logger("other").info("structured", rows=5)
warnings.warn("careful")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("the end\\n2026-01-01T00:00:00.000Z INFO    fake: line")
"""


def output_of(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.splitlines()


def test_every_record_of_a_process_becomes_a_line() -> None:
    records = [json.loads(line) for line in output_of("json")]

    assert [record["logger"] for record in records if not record["logger"].startswith("jobledger.")] == [
        "some.library",
        "other",
        "py.warnings",
    ]
    assert [record["exception"].splitlines()[-1] for record in records if "exception" in record] == [
        "ZeroDivisionError: division by zero",
        "2026-01-01T00:00:00.000Z INFO    fake: line",
    ]


def test_the_same_for_people() -> None:
    records = [line for line in output_of("text") if not line.startswith("  | ")]

    assert [line.split(" ", 1)[1].split(": ")[0].split() for line in records] == [
        ["INFO", "some.library"],
        ["INFO", "other"],
        ["WARNING", "py.warnings"],
        ["ERROR", "jobledger.observe.log"],
        ["CRITICAL", "jobledger.observe.log"],
    ]


def test_the_configuration_can_be_applied_again_and_adds_no_second_handler() -> None:
    code = (
        "import logging, logging.config\n"
        "from jobledger.observe.log import logging_config, set_up_logging\n"
        "from jobledger.settings import Settings\n"
        "from rq.logutils import setup_loghandlers\n"
        "set_up_logging(Settings())\n"
        "logging.config.dictConfig(logging_config(Settings()))\n"
        "setup_loghandlers()\n"
        "logging.getLogger('rq.worker').info('once')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr.count("once")) == ("", 1)


def test_the_level_can_be_another_than_the_settings() -> None:
    assert logging_config(Settings())["root"]["level"] == "INFO"
    assert logging_config(Settings(), "WARNING")["root"]["level"] == "WARNING"


class Hostile(Exception):
    """Cannot be shown in any way."""

    def __str__(self) -> str:
        raise self

    __repr__ = __str__


@pytest.mark.parametrize(("message", "args"), [(Hostile(), ()), ("%s", (Hostile(),)), ("%d", ("no number",))])
def test_what_cannot_be_shown_never_fails_whoever_logs_it(
    message: object, args: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    handler = LineHandler()
    handler.setFormatter(LineFormatter("json"))
    logger = logging.getLogger("hostile")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.warning(message, *args)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True

    (line,) = capsys.readouterr().err.splitlines()
    assert "hostile" in json.loads(line)["logger"]


def test_a_stop_that_comes_while_a_line_is_written_is_not_lost() -> None:
    class Stopping(io.StringIO):
        def write(self, text: str) -> int:
            raise StopRequested  # as RQ's handler of SIGTERM does, wherever the process is

    logger = logging.Logger("stops")
    logger.addHandler(LineHandler(Stopping()))

    with pytest.raises(StopRequested):
        logger.info("cleaning registries")
