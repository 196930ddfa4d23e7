"""The command: `scripts/chaos --help`."""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import control
from classes import CLASSES, FaultClass
from driver import CLOCK, SOAK_JOBS_PER_SECOND, ClassRun, Order, commit, machine
from servers import Servers

SMOKE_JOBS = 300
SHORT_PATIENCE_SECONDS = 120.0
LONG_PATIENCE_SECONDS = 300.0
POISON_SECONDS = 120.0
SMALL_DISK = "512m"


def main() -> int:
    """Run what is asked for; 1 if anything was violated."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    for name in [name for name in os.environ if name.startswith(("JOBLEDGER_", "RQ_"))]:
        del os.environ[name]
    given.out.mkdir(parents=True, exist_ok=True)
    if given.control:
        return control.main(given.out)
    orders = [one for one in orders_of(given) if not (given.resume and is_done(one))]
    if not orders:
        return 0
    if given.lanes > 1 and len(orders) > 1:
        return in_lanes(given, orders)
    ok = True
    with scratch() as directory, Servers(directory, given.seed) as servers:
        for order in orders:
            ok &= run_one(order, servers)
    return 0 if ok else 1


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What is asked for, by the command's words."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="The system under faults, judged from outside.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--smoke", action="store_true", help="a short run of the classes that matter most")
    what.add_argument("--full", action="store_true", help="every class, with thousands of jobs each")
    what.add_argument("--class", dest="classes", help="one class, or several: F2 or F1,F2")
    what.add_argument("--soak", type=float, metavar="MINUTES", help="any fault, again and again, for so long")
    what.add_argument("--control", action="store_true", help="the same witnesses over bare RQ must find what it loses")
    what.add_argument("--list", action="store_true", help="the classes, in words")
    parser.add_argument("--jobs", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the same load and faults again")
    parser.add_argument("--outage", type=float, default=0.0, metavar="SECONDS", help="how long each outage lasts")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--short", action="store_true", help="with --class: short leases and faults, as --smoke has them"
    )
    parser.add_argument("--out", type=Path, default=Path(".chaos"), help="results, and the histories of what failed")
    parser.add_argument("--resume", action="store_true", help="leave out what went well with this commit")
    parser.add_argument("--keep", action="store_true", help="keep good histories too")
    parser.add_argument("--lanes", type=int, default=0, help="classes at the same time, each on servers of its own")
    given = parser.parse_args(words)
    given.out = given.out.absolute()
    given.lanes = given.lanes or (2 if given.smoke else 1)
    return given


def orders_of(given: argparse.Namespace) -> list[Order]:
    """What was asked for, in order."""
    if given.list:
        for one in CLASSES.values():
            print(f"{one.name:4} {one.what}")  # noqa: T201 - the command's output
        return []
    if given.soak:
        jobs = given.jobs or round(60 * SOAK_JOBS_PER_SECOND * given.soak)
        return [
            Order(
                "F22",
                given.seed,
                jobs,
                given.out,
                given.workers,
                soak_minutes=given.soak,
                patience=patience(CLASSES["F22"], short=False),
                keep=given.keep,
            )
        ]
    short = given.smoke or given.short
    if given.classes:
        names = given.classes.split(",")
    else:
        names = [one.name for one in CLASSES.values() if one.in_smoke or not given.smoke]
    unknown = sorted(set(names) - set(CLASSES))
    if unknown:
        sys.exit(f"There is no class {', '.join(unknown)}; there are {', '.join(CLASSES)}.")
    return [
        Order(
            name,
            given.seed,
            given.jobs or (SMOKE_JOBS if short else CLASSES[name].jobs),
            given.out,
            given.workers,
            short,
            patience=patience(CLASSES[name], short),
            keep=given.keep,
            outage=given.outage,
        )
        for name in names
    ]


def patience(one: FaultClass, short: bool) -> float:
    """In how many seconds some job must end once all is healed."""
    if short:
        return SHORT_PATIENCE_SECONDS
    return LONG_PATIENCE_SECONDS + (POISON_SECONDS if one.poison else 0)


def run_one(order: Order, servers: Servers) -> bool:
    """One class, and its line in the results; False if anything was violated."""
    reason = impossible(order.name)
    if reason:
        write(order.out, {"class": order.name, "what": order.fault_class.what, "commit": commit(), "skipped": reason})
        print(f"{order.name} skipped: {reason}", flush=True)  # noqa: T201
        return True
    try:
        result = execute(order, servers)
    except Exception:  # a run that broke proves nothing; the other classes can be run all the same
        traceback.print_exc()
        print(f"{order.name} seed {order.seed} -> BROKE OFF; history: {order.directory}", flush=True)  # noqa: T201
        servers.heal()
        return tallied(order.name, ok=False)
    write(order.out, result | ordered(order))
    print(in_words(result, order), flush=True)  # noqa: T201
    return tallied(order.name, ok=bool(result["ok"]))


def tallied(name: str, *, ok: bool) -> bool:
    """Add a class to the file that counts what passed and what failed, if `TALLY` names one."""
    if path := os.environ.get("TALLY"):
        with Path(path).open("a") as file:
            file.write(f"{int(ok)} {int(not ok)} {name}\n")
    return ok


def execute(order: Order, servers: Servers) -> dict[str, Any]:
    """Run one class, on servers of its own if it needs a small disk."""
    if not order.fault_class.small_disk:
        return ClassRun(order, servers).execute()
    with scratch() as directory, small_disk(directory / "postgres"), Servers(directory, order.seed) as own:
        return ClassRun(order, own).execute()


def in_words(result: dict[str, Any], order: Order) -> str:
    """One line for people, and more if something was violated."""
    times = ", ".join(f"{name} max {most:.1f} s p99 {p99:.1f}" for name, (most, p99, _) in result["recovery"].items())
    line = (
        f"{result['class']} seed {result['seed']}: {result['jobs']} jobs, {result['faults']} faults,"
        f" lost {result['lost']}, doubled {result['doubled']}, unexpected {result['unexpected']},"
        f" zombie writes {result['zombie_writes']}, {times}, {result['seconds']} s"
    )
    line += f", the machine {result['slowness']:g} times as slow as idle" if result["slowness"] > 1 else ""
    line += f", goals missed: {'; '.join(result['missed'])}" if result["missed"] else ""
    if result["ok"]:
        return f"{line} -> ok"
    violations = (order.directory / "violations.txt").read_text().splitlines()
    more = [f"  … and {len(violations) - 10} more"] if len(violations) > 10 else []
    again = f"  history: {order.directory}; again: scripts/chaos {' '.join(options_of(order))}"
    return "\n".join([f"{line} -> VIOLATED", *(f"  {one}" for one in violations[:10]), *more, again])


def options_of(order: Order) -> list[str]:
    """What is to be said for the same run again."""
    what = ["--soak", f"{order.soak_minutes:g}"] if order.soak_minutes else ["--class", order.name]
    options = [*what, "--jobs", str(order.jobs), "--seed", str(order.seed), "--workers", str(order.workers)]
    options += ["--outage", f"{order.outage:g}"] if order.outage else []
    return options + (["--short"] if order.short else [])


def ordered(order: Order) -> dict[str, Any]:
    """What a line of the results says of its order: by this is known whether a run was a whole one."""
    return {"ordered": order.jobs, "soak_minutes": order.soak_minutes, "outage": order.outage}


def write(out: Path, result: dict[str, Any]) -> None:
    """One line more; two lanes may write at the same time."""
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def is_done(order: Order) -> bool:
    """Whether the last run with this very code that had at least as much to do went well."""
    path = order.out / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    same = {"class": order.name, "short": order.short, "commit": commit(), **ordered(order)}
    del same["ordered"]
    went = [
        one["ok"]
        for one in lines
        if all(one.get(name) == value for name, value in same.items()) and one["ordered"] >= order.jobs
    ]
    return bool(went and went[-1])


def impossible(name: str) -> str | None:
    """Why a class cannot be run on this machine; None if it can."""
    fault_class = CLASSES[name]
    if fault_class.shifted_clock and not Path(CLOCK).exists():
        return f"needs libfaketime ({CLOCK}; on Debian: apt-get install libfaketime)"
    if fault_class.small_disk and os.geteuid() != 0:
        return "needs root, to mount a small volume"
    return None


def in_lanes(given: argparse.Namespace, orders: list[Order]) -> int:
    """The classes in several processes, each with servers of its own: while one waits, another works."""
    lanes: list[list[str]] = [[] for _ in range(given.lanes)]
    for number, order in enumerate(orders):
        lanes[number % given.lanes].append(order.name)
    options = lane_options(given)
    begun = time.monotonic()
    print(f"seed {given.seed}, {machine()}", flush=True)  # noqa: T201
    processes = [
        subprocess.Popen([sys.executable, __file__, "--class", ",".join(names), *options]) for names in lanes if names
    ]
    try:
        codes = [process.wait() for process in processes]
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    print(f"{len(orders)} classes in {time.monotonic() - begun:.0f} s", flush=True)  # noqa: T201
    return 1 if any(codes) else 0


def lane_options(given: argparse.Namespace) -> list[str]:
    """What the command of each lane is told, besides its classes."""
    options = ["--seed", str(given.seed), "--workers", str(given.workers), "--out", str(given.out), "--lanes", "1"]
    jobs = given.jobs or (SMOKE_JOBS if given.smoke else None)
    options += ["--jobs", str(jobs)] if jobs else []
    options += ["--outage", f"{given.outage:g}"] if given.outage else []
    options += ["--short"] if given.smoke or given.short else []
    return options + (["--keep"] if given.keep else [])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for servers."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-servers-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A volume of its own that is soon full."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


if __name__ == "__main__":
    sys.exit(main())
