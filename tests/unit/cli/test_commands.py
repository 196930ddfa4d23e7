"""The commands as a whole: each is there, says in one line what it does, and how it ends."""

import click
import pytest
import redis
from click.testing import CliRunner

from jobledger.cli import main
from jobledger.cli.exits import ExitCode
from jobledger.cli.migrate import will_not_heal
from jobledger.cli.parameters import duration, queue
from jobledger.errors import ConfigurationError, JobNotFound, LedgerUnavailable, OptionError, ScheduleError

CONTEXT = click.Context(main)


@pytest.mark.parametrize("name", main.list_commands(CONTEXT))
def test_a_command_s_help_begins_as_the_list_says(name: str) -> None:
    command = main.get_command(CONTEXT, name)

    assert command is not None
    listed = CliRunner().invoke(main, ["--help"], terminal_width=200).output
    assert (command.help or "").split("\n\n")[0] in listed


def test_the_help_names_the_exit_codes() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output

    assert [line.split()[0] for line in shown.split("Exit codes:")[1].strip().split("\n")] == [
        str(int(code)) for code in ExitCode
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobNotFound("no"), ExitCode.FAILED),
        (ConfigurationError("no"), ExitCode.WRONG),
        (ScheduleError("no"), ExitCode.WRONG),
        (OptionError("no"), ExitCode.WRONG),
        (LedgerUnavailable("no"), ExitCode.AWAY),
        (redis.ConnectionError("no"), ExitCode.AWAY),
    ],
)
def test_an_error_has_an_exit_code(error: Exception, code: ExitCode) -> None:
    assert ExitCode.of(error) == (code, error, "no")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1h30m", 5400), ("0", 0)])
def test_a_duration_is_read_in_any_spelling(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "5 parsecs", "nan", "²"])
def test_what_is_no_duration_is_a_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        duration(text)


def test_the_name_of_a_queue_is_checked() -> None:
    assert queue("high") == "high"
    with pytest.raises(click.BadParameter):
        queue("--burst")


@pytest.mark.parametrize(
    ("words", "hopeless"),
    [
        ('FATAL:  password authentication failed for user "ann"', True),
        ('FATAL:  database "jobs" does not exist', True),
        ('FATAL:  role "ann" does not exist', True),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', True),
        ("FATAL:  the database system is starting up", False),
        ("FATAL:  sorry, too many clients already", False),
        ('could not connect to server "db": Connection refused', False),
        ('could not translate host name "db" to address: Name or service not known', False),
    ],
)
def test_only_what_may_heal_is_waited_for(words: str, hopeless: bool) -> None:
    assert will_not_heal(LedgerUnavailable(f"Postgres is away: {words}")) == hopeless
