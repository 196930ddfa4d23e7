"""The course of an `up`: prepare, start, wait until everything answers, run, stop in order."""

import contextlib
import http.client
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import redis

from jobledger.connections.redis import make_redis
from jobledger.errors import ConfigurationError, JobledgerError
from jobledger.settings import Settings
from jobledger.up.addresses import LOOPBACK, Addresses
from jobledger.up.directory import taken, urls_file
from jobledger.up.output import Output
from jobledger.up.ports import choose_port
from jobledger.up.program import Program
from jobledger.up.servers import prepare_servers
from jobledger.up.signals import StopSignals
from jobledger.up.supervisor import GaveUp, Supervisor


@dataclass(frozen=True)
class Plan:
    """The options of an `up`.

    Attributes:
        workers: number of stock `rq worker` processes.
        directory: directory of the embedded servers' data, `up.pid` and `urls.env`.
        log_file: receives the output of the processes instead of the terminal.
        command: command to run once, when everything is ready.
        exits: whether to stop when the command has ended.
    """

    workers: int = 2
    directory: Path = Path(".jobledger")
    log_file: Path | None = None
    command: tuple[str, ...] = ()
    exits: bool = False

    @property
    def urls_file(self) -> Path:
        """The file with the URLs for other shells, while this `up` runs."""
        return self.directory / "urls.env"

    def code_after(self, signal_number: int) -> int:
        """The exit code after a signal: an interrupted command must not look successful."""
        return 128 + signal_number if self.exits else 0


_ANSWER_SECONDS: Final = 2.0
_WORKERS_KEY: Final = "rq:workers"  # rq 3.0 worker_registration.py:18


def answers(host: str, port: int, path: str) -> bool:
    """Whether GET returns 200; without a proxy, also if the environment sets one."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def registered(url: str, pids: Iterable[int | None]) -> bool:
    """Whether RQ knows workers with all these process ids on this host."""
    try:
        with make_redis(url, _ANSWER_SECONDS) as client:
            keys = cast("set[bytes]", client.smembers(_WORKERS_KEY))
            found = [client.hmget(key, "pid", "hostname") for key in map(bytes.decode, keys)]
    except redis.RedisError:
        return False
    here = socket.gethostname().encode()
    known = {int(pid) for pid, host in cast("list[list[bytes | None]]", found) if pid and host == here}
    return set(pids) <= known


READY_SECONDS: Final = 120.0
"""Longest time until everything is ready, on a slow machine under load."""

GRACE_SECONDS: Final = 15.0
"""Time of a process to end after a stop, before it is killed; the ledger repairs a job that it ran."""

DRAIN_SECONDS: Final = 8
"""Longest wait for a running job after Ctrl-C; then it is handed back, well before the grace ends."""

_TURN_SECONDS: Final = 0.1
_LAST_LINES_SECONDS: Final = 1.0


def up(settings: Settings, plan: Plan) -> int:
    """Run everything until a signal, or until the plan's command has ended.

    Returns:
        The exit code: 0 after a signal; 1 if a process did not stay up; with `exits` that of the command, or
        128 and the signal's number if a signal came first.

    Raises:
        JobledgerError: it cannot start: another `up` runs here, a port is taken, a server does not answer…
    """
    if sys.platform != "linux":
        raise ConfigurationError("`up` needs Linux: elsewhere, children do not end with a killed parent")
    if plan.command and shutil.which(plan.command[0]) is None:
        raise ConfigurationError(f"there is no program {plan.command[0]!r} to run")
    with StopSignals() as signals:
        try:
            with contextlib.ExitStack() as cleanup:
                system = _prepared(settings, plan, signals, cleanup)
                signals.hold()
                return system.run()
        except KeyboardInterrupt:  # during the preparation
            return plan.code_after(signals.first)


def _prepared(settings: Settings, plan: Plan, signals: StopSignals, cleanup: contextlib.ExitStack) -> "_System":
    """Prepare the directory, the servers and the addresses, before the first program starts."""
    cleanup.enter_context(taken(plan.directory))
    width = max(len("dashboard"), len(f"worker-{plan.workers}"))
    output = cleanup.enter_context(Output(width, plan.log_file, as_json=settings.log_format == "json"))
    if plan.log_file:
        output.say(f"Starting. The processes log to {plan.log_file}.")
    supervisor = Supervisor(output)
    api_port = choose_port(settings, "api_port", settings.api_host, output)
    dashboard_port = choose_port(settings, "dashboard_port", LOOPBACK, output)
    servers = prepare_servers(settings, plan.directory, supervisor, cleanup)
    cleanup.enter_context(urls_file(plan.urls_file, servers))
    return _System(plan, Addresses(servers, settings.api_host, api_port, dashboard_port), signals, output, supervisor)


class _System:
    """The programs, from their start to their end."""

    def __init__(
        self, plan: Plan, addresses: Addresses, signals: StopSignals, output: Output, supervisor: Supervisor
    ) -> None:
        self._plan = plan
        self._addresses = addresses
        self._signals = signals
        self._output = output
        self._supervisor = supervisor
        port = str(addresses.dashboard_port)
        self._dashboard = self._python("dashboard", "rq_dashboard", "--bind", LOOPBACK, "--port", port)
        self._api = self._python("api", "jobledger", "api")
        self._scheduler = self._python("scheduler", "jobledger", "scheduler")
        self._workers = [self._worker(number) for number in range(1, plan.workers + 1)]
        self._command = Program("command", plan.command, addresses.environment(), output=None)

    def run(self) -> int:
        """Start, run, stop; return the exit code."""
        try:
            self._start()
            self._wait_until_ready()
            return self._stay()
        except JobledgerError as error:
            more = f"; see {self._plan.log_file}" if self._plan.log_file else ""
            self._output.say(f"Giving up: {error}{more}")
            return 1
        finally:
            self._stop()

    def _python(self, name: str, module: str, *arguments: str) -> Program:
        command = [sys.executable, "-m", module, *arguments]
        return Program(name, command, self._addresses.environment(), self._output)

    def _worker(self, number: int) -> Program:
        ours = ["-c", "jobledger.rq_config", "--connection-class", "jobledger.worker.ResilientRedis"]
        environment = {**self._addresses.environment(), "JOBLEDGER_DRAIN_SECONDS": str(DRAIN_SECONDS)}
        command = [sys.executable, "-m", "rq.cli", "worker", *ours]
        return Program(f"worker-{number}", command, environment, self._output)

    def _start(self) -> None:
        for program in (self._dashboard, self._api, self._scheduler, *self._workers):
            program.start()
            self._supervisor.watch(program)

    def _wait_until_ready(self) -> None:
        a = self._addresses
        waiting: dict[str, Callable[[], bool]] = {
            "api": lambda: answers(a.api_reachable_at, a.api_port, "/health"),
            "dashboard": lambda: answers(LOOPBACK, a.dashboard_port, "/"),
            "workers": lambda: registered(a.redis_url, [worker.pid for worker in self._workers]),
        }
        deadline = time.monotonic() + READY_SECONDS
        while waiting and not self._signals.count:
            if time.monotonic() > deadline:
                raise GaveUp(f"not ready after {READY_SECONDS:g} s: {', '.join(waiting)}")
            self._turn()
            waiting = {name: is_ready for name, is_ready in waiting.items() if not is_ready()}

    def _stay(self) -> int:
        if self._plan.command and not self._signals.count:
            self._command.start()
            while self._command.is_running and not self._signals.count:
                self._turn()
        code = self._command.code
        if self._plan.exits and code is not None:
            return code
        if code is not None:
            self._output.say(f"The command exited with {code}.")
        if not self._signals.count:
            self._announce()
        while not self._signals.count:
            self._turn()
        return self._plan.code_after(self._signals.first)

    def _announce(self) -> None:
        for line in (
            f"API         {self._addresses.api_url} (forms to try it: /docs)",
            f"Dashboard   {self._addresses.dashboard_url}",
            f"Dispatch from another shell: set -a; . {self._plan.urls_file}; set +a",
            "Ready. Ctrl-C stops everything.",
        ):
            self._output.say(line)

    def _turn(self) -> None:
        self._supervisor.tend()
        self._output.pump(_TURN_SECONDS)

    def _stop(self) -> None:
        """Stop everything in order; a further signal kills the rest."""
        if self._signals.count:
            self._output.say("Stopping; a second Ctrl-C kills.")
        patience = self._signals.count
        for group in ([self._command], self._workers, [self._scheduler], [self._api], [self._dashboard]):
            for program in group:
                program.terminate()
            deadline = time.monotonic() + GRACE_SECONDS
            while (
                any(program.is_running for program in group)
                and time.monotonic() < deadline
                and self._signals.count == patience
            ):
                self._output.pump(_TURN_SECONDS)
            for program in group:
                program.kill()
        self._output.drain(_LAST_LINES_SECONDS)
