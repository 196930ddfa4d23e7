"""What is done to a running system. Each fault injects, says whom it hit, and heals before it returns."""

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import redis
import sqlalchemy as sa

from alone import Begin, kill_alone
from fleet import Slot, send, send_all
from load import QUEUES, poisons
from measuring import listed, measure_repush, speed
from observer import is_alive
from worker_checks import GRACE_IS_OVER
from world import PATIENCE_SECONDS, World, frozen_horse, frozen_tree, soon

LOOK_SECONDS: Final = 0.25
LOG_MEGABYTES: Final = 512
NOWHERE: Final = ("127.0.0.1", 1)


Fault = Callable[[World, random.Random, Begin, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Planned:
    """One injection of a plan.

    Attributes:
        pause: before it, in seconds.
        fault: name in FAULTS.
        seed: of what is random in it.
    """

    pause: float
    fault: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)


def inject(world: World, planned: Planned) -> None:
    """Do it, with its marks in the history. One that found nothing to hit leaves none."""
    numbers: list[int] = []

    def begin(detail: str, victims: Iterable[str] = ()) -> None:
        world.begun += 1
        numbers.append(world.begun)
        world.history.say("fault_begun", fault=planned.fault, number=world.begun, detail=detail, victims=list(victims))

    try:
        FAULTS[planned.fault](world, random.Random(planned.seed), begin, planned.arguments)
    finally:
        for number in numbers:
            world.history.say("fault_healed", fault=planned.fault, number=number)


def horse_killed(world: World, chance: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F1: SIGKILL for a work-horse."""
    if arguments.get("alone"):
        kill_alone(world, chance, begin, "work-horse killed", with_worker=False)
        return
    horse = frozen_horse(world, chance)
    if horse is None:
        return
    victims = world.observer.jobs_of([horse[0]])
    world.crashes.update(victims)
    begin(f"SIGKILL work-horse {horse[0]}", victims)
    send(horse[0], signal.SIGKILL)


def tree_killed(world: World, chance: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F2: SIGKILL for a worker and all below it, as if its machine were lost."""
    if arguments.get("alone"):
        kill_alone(world, chance, begin, "worker tree killed", with_worker=True)
        return
    worker = chance.choice(world.fleet.of("worker") or [None])
    if worker is not None and worker.pid is not None:
        pids = frozen_tree(worker.pid)
        begin(f"SIGKILL {worker.name} {pids}", world.observer.jobs_of(pids))
        send_all(pids, signal.SIGKILL)


def parent_killed(world: World, chance: random.Random, begin: Begin, _: dict[str, Any]) -> None:
    """F3: SIGKILL for a worker whose work-horse could live on."""
    horse = frozen_horse(world, chance)
    if horse is None:
        return
    begin(f"SIGKILL worker {horse[1]}, not its work-horse {horse[0]}", world.observer.jobs_of([horse[0]]))
    send(horse[1], signal.SIGKILL)
    send(horse[0], signal.SIGCONT)
    killed_at = time.time()
    soon(lambda: not is_alive(horse[0]))
    world.history.say("measured", name="worker parent killed -> work-horse dead", seconds=time.time() - killed_at)


def workers_deployed(world: World, chance: random.Random, begin: Begin, _: dict[str, Any]) -> None:
    """F4: SIGTERM for all workers, at once or one after another; what outlives the grace is killed."""
    rolling = chance.random() < 0.5
    begin("SIGTERM all workers, " + ("one after another" if rolling else "at once"))
    workers = [(slot, slot.pid) for slot in world.fleet.of("worker") if slot.pid is not None]
    for group in [[one] for one in workers] if rolling else [workers]:
        send_all((pid for _, pid in group), signal.SIGTERM)
        deadline = time.monotonic() + world.grace_seconds
        for slot, pid in group:
            while slot.pid == pid and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
            if slot.pid == pid:
                pids = frozen_tree(pid)
                begin(f"{GRACE_IS_OVER}: SIGKILL {slot.name} {pids}", world.observer.jobs_of(pids))
                send_all(pids, signal.SIGKILL)


def horse_frozen(world: World, chance: random.Random, begin: Begin, _: dict[str, Any]) -> None:
    """F5: SIGSTOP for a work-horse and its worker until its lease is over and a while more; then both go on."""
    horse = frozen_horse(world, chance, with_job=True)
    if horse is None:
        return
    send(horse[1], signal.SIGSTOP)
    running = world.observer.job_of(horse[0])
    try:
        begin(f"SIGSTOP work-horse {horse[0]} and worker {horse[1]}", [running["id"]] if running else [])
        time.sleep(world.lease_seconds * 1.4 + 2 * world.sweep_seconds + 2)
    finally:
        send_all(horse, signal.SIGCONT)


def schedulers_killed(world: World, chance: random.Random, begin: Begin, _: dict[str, Any]) -> None:
    """F6: SIGKILL for one scheduler, or several at the same moment."""
    slots = world.fleet.of("scheduler")
    if slots:
        killed = chance.sample(slots, min(len(slots), chance.choice((1, 1, 2, 3))))
        begin("SIGKILL " + ", ".join(slot.name for slot in killed))
        send_all((slot.pid for slot in killed if slot.pid), signal.SIGKILL)


def api_killed(world: World, _: random.Random, begin: Begin, __: dict[str, Any]) -> None:
    """F7: SIGKILL for the API while it has a request to answer."""
    slots = world.fleet.of("api")
    if slots and slots[0].pid and soon(lambda: world.dispatcher.in_flight > 0, PATIENCE_SECONDS * world.slowness):
        begin(f"SIGKILL the API with {world.dispatcher.in_flight} requests in flight")
        send(slots[0].pid, signal.SIGKILL)


def sweeper_killed(world: World, _: random.Random, begin: Begin, __: dict[str, Any]) -> None:
    """F8: SIGKILL for the scheduler that swept last."""
    by = str(world.database.value("SELECT swept_by FROM sweeps ORDER BY swept_at DESC LIMIT 1"))
    pid = int(by.rpartition(":")[2]) if ":" in by else 0
    if pid in {slot.pid for slot in world.fleet.of("scheduler")}:
        begin(f"SIGKILL the scheduler that swept last, {pid}")
        send(pid, signal.SIGKILL)


def redis_flushed(world: World, _: random.Random, begin: Begin, __: dict[str, Any]) -> None:
    """F9: FLUSHALL, and how long it takes until what was in Redis is there again."""
    with world.servers.redis_client() as client:
        before = len(listed(client))
        begin(f"FLUSHALL with {before} wake-ups in Redis")
        client.flushall()
        measure_repush(world, client, before, "FLUSHALL -> all pushed again")


def redis_killed(world: World, chance: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F10: SIGKILL for Redis; it comes back with its append-only file, or empty."""
    keep = bool(arguments.get("keep", chance.random() < 0.5))
    with world.servers.redis_client() as client:
        before = len(listed(client))
    begin(f"SIGKILL Redis with {before} wake-ups; it comes back " + ("with its file" if keep else "empty"))
    world.servers.kill_redis(keep=keep)
    if not keep:
        with world.servers.redis_client() as client:
            measure_repush(world, client, before, "Redis back empty -> all pushed again")


def redis_cut(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F11: every connection to Redis is reset, and new ones too, for a while."""
    network(world.servers.redis_proxy, "cut", float(arguments["seconds"]), "Redis", begin)


def redis_unwell(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F12: nothing from Redis arrives any more, or late, or now and then a reply is lost."""
    network(world.servers.redis_proxy, str(arguments["mode"]), float(arguments["seconds"]), "Redis", begin)


def redis_demoted(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F13: Redis becomes the replica of nobody, which takes no writes, and then a master again."""
    with world.servers.redis_client() as client:
        begin("REPLICAOF to nowhere")
        client.replicaof(*NOWHERE)
        try:
            time.sleep(float(arguments["seconds"]))
        finally:
            client.replicaof("NO", "ONE")


def redis_full(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F14: Redis takes nothing new: `maxmemory` is reached, and nothing may be evicted."""
    with world.servers.redis_client() as client:
        begin("maxmemory 1 byte")
        client.config_set("maxmemory", 1)
        try:
            time.sleep(float(arguments["seconds"]))
        finally:
            client.config_set("maxmemory", 0)


def postgres_killed(world: World, _: random.Random, begin: Begin, __: dict[str, Any]) -> None:
    """F15: `pg_ctl stop -m immediate`, and start."""
    begin("stop -m immediate, start")
    world.servers.kill_postgres()


def postgres_unwell(world: World, chance: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F16: backends are ended at random, or every connection to Postgres is reset for a while."""
    seconds = float(arguments.get("seconds", 0))
    if seconds:
        network(world.servers.postgres_proxy, "cut", seconds, "Postgres", begin)
        return
    backends = world.database.rows(
        "SELECT pid, application_name FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid"
    )
    if backends:
        ended = chance.sample(backends, min(len(backends), chance.randint(1, 4)))
        begin("pg_terminate_backend: " + ", ".join(f"{one.pid} ({one.application_name})" for one in ended))
        for one in ended:
            world.database.execute("SELECT pg_terminate_backend(:pid)", pid=one.pid)


def both_killed(world: World, chance: random.Random, begin: Begin, _: dict[str, Any]) -> None:
    """F17: Redis and Postgres are killed at once, and come back."""
    keep = chance.random() < 0.5
    begin("both servers killed; Redis comes back " + ("with its file" if keep else "empty"))
    world.servers.postgres.kill(signal.SIGQUIT)
    world.servers.kill_redis(keep=keep)
    world.servers.postgres.restart()


def poisoned(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F18: poison among healthy jobs, whose speed is taken before and then."""
    jobs, seed = int(arguments["jobs"]), int(arguments["seed"])
    world.dispatcher.allow(jobs // 2)
    before = speed(world, 0.1 * jobs, 0.4 * jobs)
    tasks = poisons(seed, int(arguments["each"]))
    begin(", ".join(sorted({str(task.payload["how"]) for task in tasks})) + ", and wake-ups that are none")
    world.dispatcher.dispatch_now(tasks)
    with world.servers.redis_client() as client:
        push_garbage(client)
    world.dispatcher.allow(jobs)
    during = speed(world, 0.5 * jobs, 0.9 * jobs)
    # A short run is over before the speed says anything.
    world.history.say("speed" if arguments["short"] else "throughput", before=before, during=during)


def half_deployed(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F19: half of the workers get a newer module, whose jobs are dispatched already; later the others get it too."""
    workers = [slot for slot in world.fleet.slots if slot.role == "worker"]
    half = workers[: len(workers) // 2]
    begin("newer modules for " + ", ".join(slot.name for slot in half))
    deploy(world, half, str(arguments["modules"]))
    time.sleep(float(arguments["seconds"]))
    deploy(world, [slot for slot in workers if slot not in half], str(arguments["modules"]))


def clock_stepped(world: World, chance: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F20: the clock of the schedulers' host jumps by an hour, and later back."""
    step = chance.choice(("+3600", "-3600"))
    begin(f"the schedulers' clock jumps by {step} s")
    world.clock_file.write_text(f"{step}\n")
    try:
        time.sleep(float(arguments["seconds"]))
    finally:
        world.clock_file.write_text("+0\n")


def disk_filled(world: World, _: random.Random, begin: Begin, arguments: dict[str, Any]) -> None:
    """F21: nothing more fits on the volume of Postgres' data, for a while."""
    ballast = world.servers.postgres.directory / "ballast"
    world.database.execute("CREATE TABLE IF NOT EXISTS ballast (text text)")
    begin("the disk is full")
    try:
        fill(ballast)
        with contextlib.suppress(sa.exc.DBAPIError):
            for _ in range(LOG_MEGABYTES):  # the write-ahead log has files with room in them
                world.database.execute("INSERT INTO ballast SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
            raise RuntimeError(f"{LOG_MEGABYTES} MB were written to a disk that was full.")
        time.sleep(float(arguments["seconds"]))
    finally:
        ballast.unlink(missing_ok=True)
        world.servers.revive_postgres()
        world.database.execute("TRUNCATE ballast")


FAULTS: Final[dict[str, Fault]] = {
    "F1": horse_killed,
    "F2": tree_killed,
    "F3": parent_killed,
    "F4": workers_deployed,
    "F5": horse_frozen,
    "F6": schedulers_killed,
    "F7": api_killed,
    "F8": sweeper_killed,
    "F9": redis_flushed,
    "F10": redis_killed,
    "F11": redis_cut,
    "F12": redis_unwell,
    "F13": redis_demoted,
    "F14": redis_full,
    "F15": postgres_killed,
    "F16": postgres_unwell,
    "F17": both_killed,
    "F18": poisoned,
    "F19": half_deployed,
    "F20": clock_stepped,
    "F21": disk_filled,
}


def push_garbage(client: redis.Redis) -> None:
    """What somebody else, or a fault, may have left in the lists of RQ."""
    stranger, unreadable, unfinished = (str(uuid4()) for _ in range(3))
    client.hset(f"rq:job:{unreadable}", mapping={"data": b"\x80garbage", "status": "queued", "origin": "default"})
    client.hset(f"rq:job:{unfinished}", mapping={"status": "queued"})
    for queue, text in zip(QUEUES * 2, (stranger, unreadable, unfinished, "no id", b"\xff\xfe"), strict=False):
        client.rpush(f"rq:queue:{queue}", text)


def network(proxy: Any, mode: str, seconds: float, server: str, begin: Begin) -> None:
    """Something is wrong with the way to a server for a while."""
    begin(f"{server}: {mode} for {seconds:g} s")
    proxy.mode(mode)
    try:
        time.sleep(seconds)
    finally:
        proxy.mode("pass")


def deploy(world: World, slots: list[Slot], modules: str) -> None:
    """Have workers end in good order, and start again with these job modules."""
    old = [(slot, slot.pid) for slot in slots]
    for slot, pid in old:
        slot.environment["JOBLEDGER_JOB_MODULES"] = modules
        if pid is not None:
            send(pid, signal.SIGTERM)
    soon(lambda: all(slot.pid not in (None, pid) for slot, pid in old), world.grace_seconds)
    for slot, pid in old:
        if pid is not None and slot.pid == pid:
            send_all(frozen_tree(pid), signal.SIGKILL)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 65536):
            pass
