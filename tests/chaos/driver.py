"""One run of one class: start the system, break it while it works, heal it, and judge what is left."""

import logging
import math
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from canceling import Stopper
from checker import check
from classes import CLASSES, FaultClass
from dispatching import Dispatcher
from faults import Planned, inject
from fleet import Fleet, send_all
from harness import REPOSITORY
from history import History, read
from jobledger import Settings, configure
from jobledger.connections.default import default_connections
from jobledger.embedded import free_port
from jobledger.observe import conservation
from load import Size, Task, make_load
from measuring import listed
from observer import Observer
from pace import Pace, wait_down
from recovery import recoveries, requeues, stops, takeovers
from servers import Database, Servers
from snapshot import take
from ticks import check_ticks
from witnesses import Verdict
from world import World

SHORT_SETTINGS: Final = {"lease_seconds": 3.0, "sweep_seconds": 0.5, "relay_seconds": 0.2}
FULL_SETTINGS: Final = {"lease_seconds": 30.0, "sweep_seconds": 5.0, "relay_seconds": 1.0}
GRACE_SECONDS: Final = 30.0
SHORT_GRACE_SECONDS: Final = 6.0
LOOK_SECONDS: Final = 0.5
STUCK_SHOWN: Final = 20
CALM_JOBS: Final = 15
DRIFT_SECONDS: Final = 60.0
"""After which the system itself must have nothing to say against where its jobs are."""

STILL_SECONDS: Final = 95.0
"""After which what is out of place is given up, if it does not get less: RQ keeps what has ended for 60 s and more."""

TICKS_PATIENCE_SECONDS: Final = 60.0
CLOCK: Final = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
SOAK_JOBS_PER_SECOND: Final = 40


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run.

    Attributes:
        short: short leases, short faults, few long jobs.
        soak_minutes: go on for so long, instead of to the end of a plan.
        patience: seconds in which some job must end once all is healed.
        outage: seconds that each outage lasts, instead of what the plan says.
    """

    name: str
    seed: int
    jobs: int
    out: Path
    workers: int = 4
    short: bool = False
    soak_minutes: float = 0.0
    patience: float = 300.0
    keep: bool = False
    outage: float = 0.0

    @property
    def fault_class(self) -> FaultClass:
        return CLASSES[self.name]

    @property
    def directory(self) -> Path:
        return self.out / f"{self.name}-{self.seed}"

    def settings(self, slowness: float) -> dict[str, float]:
        """Of the system. A short lease is no longer than a process may have to wait for a core on a slow machine."""
        if not self.short:
            return FULL_SETTINGS
        return {**SHORT_SETTINGS, "lease_seconds": SHORT_SETTINGS["lease_seconds"] * slowness}

    def load(self) -> list[Task]:
        """What is dispatched, from the seed."""
        size = Size(self.jobs, 4, (5.0, 7.0), 2) if self.short else Size(self.jobs)
        return make_load(self.seed, size, self.fault_class.http_share, self.fault_class.newer)

    def plan(self) -> list[Planned]:
        """What is injected, from the seed."""
        planned = self.fault_class.plan(self.seed, self.jobs, self.short)
        if self.outage:
            longer = {"seconds": self.outage}
            planned = [replace(one, arguments={**one.arguments, **longer}) for one in planned]
        if not self.fault_class.poison:
            return planned
        each = 1 if self.short else self.fault_class.poison
        poison = {"jobs": self.jobs, "seed": self.seed, "each": each, "short": self.short}
        return [replace(one, arguments=poison) for one in planned]


class ClassRun:
    """A run from its first process to its verdict.

    Args:
        order: what is to be run.
        servers: running.
    """

    def __init__(self, order: Order, servers: Servers) -> None:
        self.order = order
        self.servers = servers
        shutil.rmtree(order.directory, ignore_errors=True)
        self.history = History(order.directory)
        self.scratch = Path(tempfile.mkdtemp(prefix="chaos-"))  # short: a socket's path has at most 107 bytes
        self.tasks = order.load()
        self.pace = Pace()
        self.settings = order.settings(self.pace.slowness_at_start)

    def execute(self) -> dict[str, Any]:
        """Do all of it.

        Returns:
            The line for `results.jsonl`.
        """
        begun = time.monotonic()
        try:
            world = self._start()
            try:
                with self.pace as pace:
                    self._break(world)
                    self._recover(world)
                self.history.say("pace", slowness=pace.slowness)
                self._witness(world)
            finally:
                world.fleet.stop()
                world.observer.close()
                world.stopper.close()
                configure().close()
            world.database.drop()
        finally:
            self.history.close()
            shutil.rmtree(self.scratch, ignore_errors=True)
        verdict = check(self.order.directory)
        return self._result(verdict, time.monotonic() - begun)

    def _start(self) -> World:
        order, fault_class, slowness = self.order, self.order.fault_class, self.pace.slowness_at_start
        database = self.servers.new_database()
        observer = Observer(self.scratch / "observer", self.history)
        logs = order.directory / "logs"
        logs.mkdir()
        logging.basicConfig(filename=logs / "dispatcher.log", level=logging.INFO, force=True)
        clock_file = self.scratch / "clock"
        clock_file.write_text("+0\n")
        fleet = Fleet(self._environment(database, observer), logs, self.history)
        fleet.add_workers(order.workers)
        fleet.add_schedulers(fault_class.schedulers)
        api_port = free_port()
        fleet.add_api(api_port)
        if fault_class.shifted_clock:
            for slot in fleet.slots:
                if slot.role == "scheduler":
                    slot.environment.update(_clock_environment(clock_file))
        connections = configure(
            Settings(
                database_url=database.system_environment["JOBLEDGER_DATABASE_URL"],  # type: ignore[arg-type]
                redis_url=database.system_environment["JOBLEDGER_REDIS_URL"],  # type: ignore[arg-type]
            )
        )
        dispatcher = Dispatcher(connections, api_port, self.history, self.tasks)
        stopper = Stopper(connections, self.history)
        observer.on_start = stopper.hear
        self.history.say(
            "run_begun",
            fault=order.name,
            seed=order.seed,
            jobs=order.jobs,
            settings=self.settings,
            short=order.short,
            commit=commit(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        world = World(
            self.servers,
            database,
            fleet,
            observer,
            self.history,
            dispatcher,
            stopper,
            self.settings["lease_seconds"],
            self.settings["sweep_seconds"],
            SHORT_GRACE_SECONDS * slowness if order.short else GRACE_SECONDS,
            clock_file,
            slowness,
        )
        try:
            fleet.start()
        except BaseException:
            fleet.stop()
            raise
        return world

    def _environment(self, database: Database, observer: Observer) -> dict[str, str]:
        modules = "chaos_jobs,chaos_schedules" if self.order.fault_class.ticks else "chaos_jobs"
        settings = {f"JOBLEDGER_{name.upper()}": str(value) for name, value in self.settings.items()}
        return {
            **database.system_environment,
            **settings,
            "JOBLEDGER_JOB_MODULES": modules,
            "JOBLEDGER_DATA_DIR": str(self.scratch),
            "CHAOS_OBSERVER": str(observer.path),
        }

    def _break(self, world: World) -> None:
        """Dispatch in step with the faults, so that there is work before each of them, and while it lasts."""
        world.dispatcher.start()
        if self.order.soak_minutes:
            self._soak(world)
            return
        plan = self.order.plan()
        if self.order.fault_class.burst:
            world.dispatcher.allow(self.order.jobs)
        for number, planned in enumerate(plan):
            self._allow(world, 2 * len(plan), 2 * number)
            time.sleep(planned.pause)
            self._allow(world, 2 * len(plan), 2 * number + 1)
            if self.order.fault_class.calm:
                self._let_catch_up(world, 0 if planned.arguments.get("alone") else CALM_JOBS)
            inject(world, planned)

    def _let_catch_up(self, world: World, most: int) -> None:
        """What is to be measured is how soon a job runs again, not how long it stands in a queue."""
        waiting = "SELECT count(*) FROM job_statuses WHERE status = 'queued' AND held_by IS NULL"

        def too_many() -> int:
            undispatched = 0 if world.dispatcher.is_waiting else 1
            return max(0, int(str(world.database.value(waiting))) - most) + undispatched

        wait_down(too_many, self.order.patience, LOOK_SECONDS / 2)

    def _allow(self, world: World, steps: int, step: int) -> None:
        if not self.order.fault_class.poison:
            world.dispatcher.allow(allowed(self.order.jobs, steps, step))

    def _soak(self, world: World) -> None:
        end, number = time.monotonic() + 60 * self.order.soak_minutes, 0
        while time.monotonic() < end:
            share = 1 - (end - time.monotonic()) / (60 * self.order.soak_minutes)
            world.dispatcher.allow(math.ceil(self.order.jobs * share))
            planned = self.order.fault_class.soak(self.order.seed, number)
            time.sleep(planned.pause)
            inject(world, planned)
            number += 1

    def _recover(self, world: World) -> None:
        """Heal, dispatch what is left, and wait for every job to end, as long as some end within the patience."""
        self.servers.heal()
        send_all((slot.pid for slot in world.fleet.slots if slot.pid), signal.SIGCONT)
        if not world.dispatcher.finish(self.order.patience):
            self.history.say("undispatched", allowed=len(self.tasks))
        self.history.say("quiet")
        quiet_at, agreed, counted = time.monotonic(), False, False

        def look() -> int:
            nonlocal agreed, counted
            seconds = time.monotonic() - quiet_at
            if not agreed and disagreement(world, listed(client)) <= 2 * self.order.workers:
                agreed = True
                self.history.say("measured", name="all healed -> Redis and ledger agree", seconds=seconds)
            if not counted and seconds >= DRIFT_SECONDS:
                counted = True
                self._count_places(quiet_at)
            if self.order.fault_class.poison:  # each one when it has begun to wait
                end_unknown_types(world.database)
            return unfinished(world.database)

        with self.servers.redis_client() as client:
            left = wait_down(look, self.order.patience, LOOK_SECONDS)
        if not counted:
            self._count_places(quiet_at)
        self.history.say("drained", **({"timed_out": True, "left": left} if left else {}))
        if left:
            print(stuck(world.database))  # noqa: T201 - whoever waits for a run must see why it hangs

    def _count_places(self, quiet_at: float) -> None:
        """Have the system itself count, as long as it finds less and less that is out of place."""
        counts: list[conservation.Conservation] = []

        def drift() -> int:
            counts.append(conservation.count(default_connections()))
            return counts[-1].drift

        found = wait_down(drift, STILL_SECONDS)
        seconds = time.monotonic() - quiet_at
        self.history.say("drift", drift=found, seconds=seconds, places=asdict(counts[-1]))
        self.history.say("measured", name="all healed -> each job in one place", seconds=seconds)

    def _witness(self, world: World) -> None:
        if self.order.fault_class.ticks:
            check_ticks(world, TICKS_PATIENCE_SECONDS)
        take(world, self.order.directory, world.fleet.environment["CHAOS_OBSERVER"])
        events, ledger = read(self.order.directory)
        sweeps = [float(row[0]) for row in world.database.rows("SELECT extract(epoch FROM at) FROM sweeps_seen")]
        moves = ledger["moves"]
        times = [*recoveries(events), *requeues(events, moves), *takeovers(events, sweeps), *stops(events, moves)]
        for name, seconds in times:
            self.history.say("measured", name=name, seconds=round(seconds, 3))
        self.history.say("run_ended")

    def _result(self, verdict: Verdict, seconds: float) -> dict[str, Any]:
        order, counts = self.order, verdict.counts
        result = {
            "class": order.name,
            "what": order.fault_class.what,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit(),
            "seed": order.seed,
            "jobs": counts["accepted"],
            **{name: counts[name] for name in ("faults", "lost", "doubled", "unexpected", "zombie_writes")},
            "recovery": verdict.measured,
            "drift": counts["leftovers"],
            "seconds": round(seconds),
            "ok": not verdict.violations,
            "violations": len(verdict.violations),
            "short": order.short,
            "machine": machine(),
            "slowness": self.pace.slowness,
            "missed": verdict.missed,
        }
        if not verdict.violations and not order.keep:
            shutil.rmtree(order.directory, ignore_errors=True)
        else:
            (order.directory / "violations.txt").write_text("".join(f"{one}\n" for one in verdict.violations))
        return result


def allowed(jobs: int, steps: int, step: int) -> int:
    """How many of the jobs may have been dispatched by the end of a step; the last ones come after all steps. Pure."""
    return math.ceil(jobs * (step + 1) / (steps + 1))


def unfinished(database: Database) -> int:
    """How many jobs of the load have not ended."""
    sql = "SELECT count(*) FROM job_statuses WHERE finished_at IS NULL AND job_type <> 'TickSeen'"
    return int(str(database.value(sql)))


def disagreement(world: World, in_redis: set[str]) -> int:
    """How many wake-ups one of the two has, and the other does not know of."""
    pushed = "SELECT id FROM job_statuses WHERE status = 'queued' AND held_by IS NULL AND pushed_at IS NOT NULL"
    return len({str(row.id) for row in world.database.rows(pushed)} ^ in_redis)


def end_unknown_types(database: Database) -> None:
    """As if more than an hour had passed since workers saw jobs of a type that none of them knows."""
    database.execute(
        "UPDATE job_attempts a SET started_at = a.started_at - interval '2 hours',"
        " finished_at = a.finished_at - interval '2 hours' FROM job_statuses j"
        " WHERE j.id = a.job_id AND j.status = 'scheduled' AND a.outcome = 'unknown_type'"
    )
    database.execute(
        "UPDATE job_statuses j SET available_at = now() WHERE j.status = 'scheduled'"
        " AND EXISTS (SELECT FROM job_attempts a WHERE a.job_id = j.id AND a.outcome = 'unknown_type')"
    )


def stuck(database: Database) -> str:
    """Which jobs have not ended, and where they stand."""
    rows = database.rows(
        "SELECT id, payload->>'key' AS key, job_type, queue, status, attempt, held_by, waiting_parents, push_count,"
        " pushed_at, round(extract(epoch FROM now() - available_at)) AS due_for,"
        " round(extract(epoch FROM now() - updated_at)) AS unchanged_for"
        " FROM job_statuses WHERE finished_at IS NULL AND job_type <> 'TickSeen' ORDER BY id LIMIT :limit",
        limit=STUCK_SHOWN,
    )
    return "\n".join(["not ended:", *("  " + ", ".join(f"{k}={v}" for k, v in row._mapping.items()) for row in rows)])


def commit() -> str:
    """The commit of the code, with a + if its sources differ from that."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "src") else "")


def machine() -> str:
    """On what it ran, in a few words."""
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    return f"{cores} cores, {platform.machine()}, Linux {platform.release().split('-')[0]}"


def _clock_environment(clock_file: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": CLOCK,
        "FAKETIME_TIMESTAMP_FILE": str(clock_file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
