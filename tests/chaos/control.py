"""The negative control: the same witnesses and the same checker over bare RQ, whose faults it must find.

A checker that cannot find bugs that are known to be there proves nothing by finding none. RQ gets a fair chance: each
job may be retried three times, and its workers look every few seconds after what others have left.
"""

import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis
import rq
import sqlalchemy as sa
from rq.exceptions import NoSuchJobError

import bare
from chaos_jobs import EFFECTS
from checker import check
from harness import REPOSITORY, TESTS, Process, eventually
from history import LEDGER, History
from jobledger.embedded import EmbeddedRedis, EmbeddedServers
from observer import Observer, children
from proxy import Proxy
from witnesses import Kind

QUEUES: Final = ("high", "default", "low")
QUICK_COMMAND: Final = ["--maintenance-interval", "5", "--worker-ttl", "20", "--job-monitoring-interval", "5"]
"""As soon as RQ can notice a death: 60 seconds of its lease are fixed, and so are the 60 in an intermediate list."""

LEASE_SECONDS: Final = 65
PATIENCE_SECONDS: Final = 150.0

STATUSES: Final = {"finished": "completed", "stopped": "canceled"}
"""RQ's words, where jobledger has others."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the checker says of bare RQ after one fault.

    Attributes:
        name: of the fault.
        what: it is, in words.
        expected: what has to be found.
        found: how often each kind was.
        first: the first violation of an expected kind, in words; empty if none was found.
    """

    name: str
    what: str
    expected: Kind
    found: Counter[Kind]
    first: str

    @property
    def ok(self) -> bool:
        """Whether it was found."""
        return self.found[self.expected] > 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.found.items())) or "nothing"
        verdict = "found" if self.ok else f"NOT FOUND: {self.expected}"
        return f"{self.what}\n  {kinds} -> {verdict}\n  {self.first}".rstrip()


class Bench:
    """Bare RQ on servers of its own, with an observer. A context manager.

    Args:
        directory: for history, ledger and logs.
        server: a Redis of its own, because faults befall all that is in one.
        database_url: of a database of its own, for the effects.
    """

    def __init__(self, directory: Path, server: EmbeddedRedis, database_url: str) -> None:
        self.directory = directory
        self.port = server.port
        self.client = redis.Redis.from_url(server.url)
        self.engine = sa.create_engine(database_url, poolclass=sa.NullPool)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(EFFECTS)
        self.history = History(directory)
        self._sockets = tempfile.TemporaryDirectory(prefix="control-")
        self.observer = Observer(Path(self._sockets.name) / "observer", self.history)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS / "chaos"), str(TESTS), str(REPOSITORY)]),
            "RQ_REDIS_URL": server.url,
            "BARE_DATABASE_URL": sa.make_url(database_url).set(drivername="postgresql").render_as_string(False),
            "CHAOS_OBSERVER": str(self.observer.path),
        }
        self._workers: list[Process] = []
        self._keys: dict[str, str] = {}
        self._faults = 0

    def __enter__(self) -> "Bench":
        self.history.say("run_begun", fault=self.directory.name, seed=None, settings={"lease_seconds": LEASE_SECONDS})
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            for horse in children(worker.pid):
                kill(horse)
            worker.kill_tree()
        self.observer.close()
        self._sockets.cleanup()
        self.history.close()
        self.engine.dispose()
        self.client.close()

    def worker(self, *queues: str, worker_class: str = "rq.worker.Worker") -> Process:
        """A worker that listens."""
        command = [str(Path(sys.executable).with_name("rq")), "worker", *QUICK_COMMAND, "-w", worker_class, *queues]
        worker = Process(command, self._environment, self.directory / f"worker-{len(self._workers)}.log")
        self._workers.append(worker)
        eventually(lambda: "Listening on" in worker.output(), 60, f"a worker listens: {worker.output()}")
        return worker

    def enqueue(self, key: str, queue: str = "default", client: redis.Redis | None = None, until: float = 0.0) -> str:
        """Enqueue a job, which must be accepted."""
        job_id = str(uuid.uuid4())
        self._keys[job_id] = key
        self.history.say("dispatch_invoked", key=key)
        retry = rq.Retry(max=bare.RETRIES)
        rq.Queue(queue, connection=client or self.client).enqueue(bare.work, key, until, job_id=job_id, retry=retry)
        self.history.say("dispatch_accepted", key=key, id=job_id)
        return job_id

    @contextmanager
    def fault(self, detail: str, victims: Iterable[str] = ()) -> Iterator[None]:
        self._faults += 1
        about = {"fault": self.directory.name, "number": self._faults}
        self.history.say("fault_begun", **about, detail=detail, victims=list(victims))
        yield
        self.history.say("fault_healed", **about)

    def settle(self, runs: int, patience: float = 0.0) -> None:
        """Wait until so many runs have returned, until RQ knows it, and for what may still come."""
        eventually(lambda: self.observer.returned >= runs, PATIENCE_SECONDS, f"{runs} runs in {self.directory}")
        eventually(lambda: not any(job.is_started for job, _ in self.kept()), what="RQ has written the ends")
        time.sleep(patience)  # what does not happen has no condition that says so
        self.history.say("quiet")
        self.history.say("drained")

    def kept(self) -> Iterator[tuple[rq.job.Job, str]]:
        """The jobs that RQ still knows, with their keys."""
        for job_id, key in self._keys.items():
            with suppress(NoSuchJobError):
                yield rq.job.Job.fetch(job_id, connection=self.client), key

    def write_ledger(self) -> None:
        """What RQ says of its jobs, in the shape of the ledger: its status, and as many attempts as it has counted."""
        rows: dict[str, list[dict[str, Any]]] = {"jobs": [], "attempts": [], "moves": []}
        for job, key in self.kept():
            describe(job, key, rows)
        with self.engine.connect() as connection:
            effects = [dict(row) for row in connection.execute(sa.text("SELECT * FROM effects")).mappings()]
        lists = {
            name: {queue: self._list(f"rq:queue:{queue}{ending}") for queue in QUEUES}
            for name, ending in (("queued", ""), ("intermediate", ":intermediate"))
        }
        nothing = {"effects": effects, "redis": {**lists, "executions": []}, "sessions": [], "processes": []}
        (self.directory / LEDGER).write_text(json.dumps({**rows, **nothing}, default=str))

    def _list(self, name: str) -> list[str]:
        return [one.decode() for one in self.client.lrange(name, 0, -1)]  # type: ignore[union-attr]


def describe(job: rq.job.Job, key: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Add RQ's view of a job to the rows of a ledger, consistent in itself, so that only real faults stand out."""
    word = str(job.get_status(refresh=False).value)
    status = STATUSES.get(word, word)
    attempts = bare.attempts_of(job) if job.started_at is not None else 0
    reason = "lost" if status == "failed" else None
    rows["jobs"].append(
        {"id": job.id, "key": key, "status": status, "reason": reason, "attempt": attempts, "held_by": None}
        | {"errors": 0, "crashes": 0, "losses": attempts - (status != "failed") if attempts else 0}
        | {"max_attempts": 1 + bare.RETRIES}
    )
    path: list[tuple[str, int]] = [("queued", 0)]
    for number in range(1, attempts + 1):
        is_last = number == attempts
        outcome = "completed" if is_last and status == "completed" else "lost"
        rows["attempts"].append(
            {"job_id": job.id, "number": number, "worker": job.worker_name, "outcome": outcome}
            | {"started_at": number, "finished_at": number}
        )
        path += [("started", number)] if is_last else [("started", number), ("scheduled", number), ("queued", number)]
    path += [(status, attempts)] if path[-1][0] != status else []
    was: str | None = None
    for now, attempt in path:
        rows["moves"].append({"job_id": job.id, "was": was, "now": now, "attempt": attempt, "at": 0})
        was = now


def popped_and_killed(bench: Bench, patience: float) -> None:
    """Workers on several queues, killed between the pop and the record of the execution."""
    workers = [bench.worker(*QUEUES, worker_class="bare.PausesAfterPop") for _ in range(2)]
    victims = [bench.enqueue(f"quick-{number}") for number in range(len(workers))]
    eventually(lambda: bench.client.llen("rq:queue:default") == 0, what="all jobs are popped")
    with bench.fault("SIGKILL all workers", victims):
        for worker in workers:
            worker.kill_tree()
    bench.worker(*QUEUES)
    bench.enqueue("quick-after")
    bench.settle(1, patience)


def reply_lost(bench: Bench, _: float) -> None:
    """The reply to the EXEC of an enqueue is lost, and redis-py sends it again."""
    password = bench.client.get_connection_kwargs()["password"]
    with Proxy("127.0.0.1", bench.port) as proxy, redis.Redis("127.0.0.1", proxy.port, password=password) as client:
        client.ping()
        dropped = proxy.drop_next_reply(b"RPUSH")  # the transaction that pushes; an earlier one only names the queue
        with bench.fault("the reply to EXEC is dropped"):
            bench.enqueue("quick-0", client=client)
        assert dropped.is_set()
    bench.worker("default")
    bench.settle(2)


def parent_killed(bench: Bench, _: float) -> None:
    """A worker is killed and its work-horse not: it goes on, while another worker runs the job again."""
    worker = bench.worker("default")
    victim = bench.enqueue("long-0", until=time.time() + LEASE_SECONDS + 25)
    eventually(lambda: bench.observer.running, what="the job runs")
    with bench.fault(f"SIGKILL worker {worker.pid}, not its work-horse", [victim]):
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    bench.worker("default")
    bench.settle(2)


def horse_killed_early(bench: Bench, _: float) -> None:
    """A work-horse is killed before it begins; its job is retried, finishes, and is run once more."""
    worker = bench.worker("default", worker_class="bare.PausesAfterFork")
    victim = bench.enqueue("quick-0")
    (horse,) = eventually(lambda: children(worker.pid), what="there is a work-horse")
    with bench.fault(f"SIGKILL work-horse {horse}", [victim]):
        kill(horse)
    bench.settle(2)


def flushed(bench: Bench, patience: float) -> None:
    """Redis is emptied while jobs are queued."""
    victims = [bench.enqueue(f"quick-{number}") for number in range(20)]
    with bench.fault("FLUSHALL", victims):
        bench.client.flushall()
    bench.worker(*QUEUES)
    bench.enqueue("quick-after")
    bench.settle(1, patience)


Fault = Callable[[Bench, float], None]

FAULTS: Final[dict[str, tuple[Fault, Kind]]] = {
    "popped": (popped_and_killed, Kind.LOST),
    "flushed": (flushed, Kind.LOST),
    "reply": (reply_lost, Kind.DOUBLED),
    "parent": (parent_killed, Kind.DOUBLED),
    "horse": (horse_killed_early, Kind.DOUBLED),
}
"""What bare RQ does not survive, and what the checker has to say then."""

QUICK: Final = ("popped", "flushed", "reply")
"""Those that do not have to wait for RQ's leases."""


def run(out: Path, names: Iterable[str] = tuple(FAULTS), patience: float = 75.0) -> list[Finding]:
    """Break bare RQ in each known way, all at once, and see what the checker finds. To be called in the main thread.

    Args:
        out: for a directory with the history of each.
        names: of the faults.
        patience: seconds that RQ has to make good what it has lost, after all else is done.
    """
    names = list(names)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="control-servers-")))
        servers = stack.enter_context(EmbeddedServers(scratch, persistent=False))
        benches = [stack.enter_context(_bench(out, name, servers, stack)) for name in names]
        with ThreadPoolExecutor(len(names)) as threads:
            return list(threads.map(lambda name, bench: _find(name, bench, patience), names, benches))


def _bench(out: Path, name: str, servers: EmbeddedServers, stack: ExitStack) -> Bench:
    server = EmbeddedRedis(servers.redis.directory.with_name(f"redis-{name}"), persistent=False)
    stack.callback(server.stop)
    server.start()
    servers.postgres.create_database(f"control_{name}")
    return Bench(out / f"control-{name}", server, servers.postgres.url_for(f"control_{name}"))


def _find(name: str, bench: Bench, patience: float) -> Finding:
    fault, expected = FAULTS[name]
    fault(bench, patience)
    bench.write_ledger()
    violations = check(bench.directory).violations
    first = next((str(violation) for violation in violations if violation.kind is expected), "")
    found = Counter(violation.kind for violation in violations)
    return Finding(name, (fault.__doc__ or "").strip(), expected, found, first)


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(out: Path) -> int:
    """Run all of it and say what was found; 0 only if everything was that had to be."""
    findings = run(out)
    for finding in findings:
        print(finding, flush=True)  # noqa: T201 - the command's output
    return 0 if all(finding.ok for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
