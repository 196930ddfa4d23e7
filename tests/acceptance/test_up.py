"""`python -m jobledger up`, as a user has it: in a directory of its own, from start to end, and killed."""

import contextlib
import itertools
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from harness import REPOSITORY, TESTS, eventually, leads_a_group
from jobledger.errors import ConfigurationError
from jobledger.settings import Settings
from jobledger.up.output import Output
from jobledger.up.ports import choose_port
from jobledger.up.supervisor import QUICK_DEATHS, GaveUp, Supervisor

START_SECONDS = 120  # two busy cores, several interpreters and a fresh Postgres
END_SECONDS = 60
MARK = "JOBLEDGER_TEST_MARK"
"""In the environment of everything that an `up` under test starts, with its directory as the value."""


READ_RESULT = """
import sqlalchemy as sa
from jobledger.connections.default import default_connections
with default_connections().transaction() as connection:
    print(connection.execute(sa.text("SELECT result FROM job_statuses WHERE id = '{}'")).scalar_one())
"""


class Up:
    """One `up` in a directory, with its output kept."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            MARK: str(directory),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(REPOSITORY)]),
            "JOBLEDGER_JOB_MODULES": "sample_jobs",
            "JOBLEDGER_API_PORT": "0",
            "JOBLEDGER_DASHBOARD_PORT": "0",
            **environment,
        }
        self._log = directory / f"up-{len(list(directory.glob('up-*.log')))}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobledger", "up", *arguments],
                cwd=directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, times: int = 1, seconds: float = START_SECONDS) -> None:
        def seen() -> bool:
            return self.output().count(text) >= times or self.process.poll() is not None

        eventually(seen, seconds, f"{text!r} in the output")
        assert self.output().count(text) >= times, self.output()

    def wait_until_ready(self) -> None:
        self.wait_for("Ready.")

    def url(self, name: str) -> str:
        found = re.search(rf"^up +\| {name} +(http\S+)", self.output(), re.MULTILINE)
        assert found, self.output()
        return found[1]

    def python(self, code: str) -> str:
        """What a Python program prints in another shell, which has the URLs from `urls.env`."""
        script = f'set -a; . .jobledger/urls.env; set +a; exec "{sys.executable}" -c "$0"'
        done = subprocess.run(
            ["sh", "-c", script, code],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def children(self, *words: str) -> list[psutil.Process]:
        """Its direct children with all these words in their command line."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if set(words) <= set(child.cmdline()):
                    found.append(child)
        return found

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS)


def processes_of(directory: Path) -> list[str]:
    """All living processes that work in a directory, or were started by an `up` that does."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            if process.pid != os.getpid() and not is_zombie and _works_in(process, directory):
                found.append(f"{process.pid} {process.cmdline()}")
    return found


def _works_in(process: psutil.Process, directory: Path) -> bool:
    return (
        process.environ().get(MARK) == str(directory)
        or Path(process.cwd()).is_relative_to(directory)
        or any(str(directory) in word for word in process.cmdline())
    )


def assert_nothing_left(directory: Path, seconds: float = 20) -> None:
    eventually(lambda: not processes_of(directory), seconds, f"the end of {processes_of(directory)}")


StartUp = Callable[..., Up]


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[StartUp]:
    """Starts an `up` in the test's directory; whatever is left of it dies with the test."""
    started: list[Up] = []

    def start(*arguments: str, **environment: str) -> Up:
        started.append(Up(tmp_path, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(END_SECONDS)
    assert_nothing_left(tmp_path)


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read().decode()


def test_all_of_it_runs_in_one_directory_and_ends_with_ctrl_c(start_up: StartUp, tmp_path: Path) -> None:
    up = start_up()
    up.wait_until_ready()

    assert get(f"{up.url('API')}/health")[0] == 200
    assert "RQ" in get(up.url("Dashboard"))[1]
    assert up.python("from sample_jobs import Echo; print(Echo.dispatch(a=1).wait(60).result)") == "{'a': 1}"

    urls = tmp_path / ".jobledger" / "urls.env"
    assert stat.S_IMODE(urls.stat().st_mode) == 0o600
    passwords = re.findall(r":([^:@/]+)@", urls.read_text())
    assert len(passwords) == 2
    assert not any(password in process for password in passwords for process in processes_of(tmp_path))

    before = urls.read_text()
    second = start_up()
    assert second.process.wait(START_SECONDS) == 1
    assert f"already running: process {up.process.pid}" in second.output()
    assert urls.read_text() == before
    assert up.process.poll() is None

    assert up.end(signal.SIGINT) == 0
    assert processes_of(tmp_path) == []
    assert not urls.exists()
    assert "Traceback" not in up.output()


def test_what_dies_is_started_again_and_a_killed_up_leaves_nothing_but_its_data(
    start_up: StartUp, tmp_path: Path
) -> None:
    up = start_up()
    up.wait_until_ready()
    job_id = up.python("from sample_jobs import Echo; print(Echo.dispatch(kept='yes').wait(60).id)")

    workers = up.children("rq.cli", "worker")
    assert len(workers) == 2
    workers[0].kill()
    up.wait_for("was killed by SIGKILL; it is started again")
    up.wait_for("Listening on", times=3)
    [postgres] = [child for child in up.children() if child.name() == "postgres"]
    postgres.kill()
    up.wait_for("postgres was started again")

    up.python("from sample_jobs import Reports; Reports.dispatch(release_file='never')")
    up.wait_for("halfway")
    up.process.kill()
    up.process.wait(END_SECONDS)
    assert_nothing_left(tmp_path, 30)

    again = start_up()
    again.wait_until_ready()
    assert again.python(READ_RESULT.format(job_id)) == "{'kept': 'yes'}"
    assert again.end(signal.SIGTERM) == 0
    assert processes_of(tmp_path) == []


def test_a_second_ctrl_c_kills_the_job_that_the_first_one_waits_for(
    start_up: StartUp, environment: dict[str, str], tmp_path: Path
) -> None:
    up = start_up("--workers", "1", **environment)
    up.wait_until_ready()
    up.python("from sample_jobs import Reports; Reports.dispatch(release_file='never')")
    up.wait_for("halfway")

    def work_horses() -> list[psutil.Process]:
        return [
            child
            for worker in up.children("rq.cli", "worker")
            for child in worker.children()
            if leads_a_group(child.pid)
        ]

    assert work_horses()
    up.process.send_signal(signal.SIGINT)
    up.wait_for("warm shut down requested")
    assert up.process.poll() is None
    assert work_horses()

    assert up.end(signal.SIGINT) == 0
    assert processes_of(tmp_path) == []


def test_a_command_runs_when_all_is_ready_and_its_code_is_the_last_word(
    start_up: StartUp, environment: dict[str, str], tmp_path: Path
) -> None:
    code = "from sample_jobs import Echo; print(Echo.dispatch(by='command').wait(60).result); raise SystemExit(7)"
    up = start_up("--log-file", "log", "--exit", sys.executable, "-c", code, **environment)

    assert up.process.wait(START_SECONDS) == 7
    assert up.output().splitlines()[1:] == ["{'by': 'command'}"]  # after where the processes log to
    assert "Listening on" in (tmp_path / "log").read_text()
    assert not (tmp_path / ".jobledger" / "postgres").exists()
    assert processes_of(tmp_path) == []


def test_a_command_that_was_cut_short_did_not_succeed(
    start_up: StartUp, environment: dict[str, str], tmp_path: Path
) -> None:
    code = "import time; print('begun', flush=True); time.sleep(600)"
    up = start_up("--workers", "1", "--exit", sys.executable, "-c", code, **environment)
    up.wait_for("begun")

    assert up.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert processes_of(tmp_path) == []


def test_what_never_stays_up_is_given_up(start_up: StartUp, environment: dict[str, str], tmp_path: Path) -> None:
    up = start_up("--workers", "1", **environment, RQ_WORKER_CLASS="no.such.class")

    assert up.process.wait(START_SECONDS) == 1
    assert "worker-1 exited with 1; it is started again in 0.5 s" in up.output()
    assert "Giving up: worker-1 exited with 1, the 5th time in a row" in up.output()
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["no-such-program"], {}, "no-such-program"),
        (["--exit"], {}, "--exit needs a COMMAND"),
        ([], {"JOBLEDGER_REDIS_URL": "redis://127.0.0.1:1/0"}, "JOBLEDGER_REDIS_URL: no answer"),
    ],
)
def test_what_cannot_work_is_refused(
    start_up: StartUp, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    up = start_up(*arguments, **environment)

    assert up.process.wait(START_SECONDS) == 2
    assert words in up.output()
    assert "Traceback" not in up.output()


def test_a_taken_port_is_refused_if_it_was_asked_for_and_else_replaced(capsysbinary: pytest.CaptureFixture) -> None:
    output = Output(width=2)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"JOBLEDGER_API_PORT={port}"):
            choose_port(Settings(api_port=port), "api_port", "127.0.0.1", output)
        by_default = Settings.model_construct(_fields_set=set(), api_port=port)
        chosen = choose_port(by_default, "api_port", "127.0.0.1", output)
    assert chosen != port
    assert f"Port {port} cannot be had".encode() in capsysbinary.readouterr().out


class FailingChild:
    """A child that always has just ended."""

    name = "it"

    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def ended(self) -> str:
        return "exited with 3"


def test_the_pause_before_a_new_start_doubles_until_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture
) -> None:
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(looks) * 0.01)  # in seconds
    monkeypatch.setattr("jobledger.up.supervisor.time", clock)
    supervisor = Supervisor(Output(width=2))
    child = FailingChild()
    supervisor.watch(child)

    def tend_for_long() -> None:
        for _ in range(10_000):
            supervisor.tend()

    with pytest.raises(GaveUp, match="it exited with 3, the 5th time in a row"):
        tend_for_long()

    assert child.starts == QUICK_DEATHS - 1
    pauses = re.findall(rb"started again in (\S+) s", capsysbinary.readouterr().out)
    assert pauses == [b"0.5", b"1", b"2", b"4"]
