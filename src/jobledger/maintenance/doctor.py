"""Checks the servers, the schema, the processes and the counts; reports problems, and repairs what it can."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import redis
from sqlalchemy.exc import SQLAlchemyError

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import heartbeats, stats, wakeups
from jobledger.ledger.identity import ledger_name
from jobledger.ledger.stats import PostgresFacts
from jobledger.maintenance.chores import CHORES, Manner
from jobledger.maintenance.ownership import refusal
from jobledger.observe import conservation
from jobledger.observe.conservation import MOST_ENTRIES, Conservation
from jobledger.observe.health import Schema, look_at_ledger, stale_sweep
from jobledger.queues import RedisFacts, owner
from jobledger.queues.keys import list_of

LOOK_SECONDS: Final = 3.0
MOST_SKEW_SECONDS: Final = 2.0
LEAST_REDIS: Final = (6, 2)
LEAST_POSTGRES: Final = 140_000
MOST_MEMORY: Final = 0.9
"""The share of its maxmemory that Redis may use."""

MOST_COUNTED: Final = 1000
MOST_ROUNDS: Final = 20


class Severity(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but will fail when something else does."""
    PROBLEM = "problem"
    AWAY = "away"
    """A server did not answer: a problem, too."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        message: the fact.
        remedy: what to do about it; empty if nothing.
    """

    subject: str
    verdict: Severity
    message: str
    remedy: str = ""


def examine(connections: Connections, known_revisions: tuple[str, ...]) -> list[Finding]:
    """Check both servers, and the processes that use them.

    Args:
        connections: the servers.
        known_revisions: of the schema, the one that the code needs first.

    Returns:
        The findings. Nothing is raised if a server is away, or freezes meanwhile.
    """
    skew = _Skew()
    found = [*_guarded("postgres", lambda: _postgres(connections, known_revisions, skew))]
    found += _guarded("redis", lambda: _redis(connections, skew))
    if any(one.verdict is Severity.AWAY for one in found):
        return found
    found += skew.findings()
    if any(one.subject == "schema" and one.verdict is Severity.PROBLEM for one in found):
        return found
    looks = {
        "redis writes": _writes,
        "ledger": _ledger,
        "repair": _repair,
        "workers": _workers,
        "conservation": _conservation,
    }
    for subject, look in looks.items():
        found += _guarded(subject, lambda look=look: look(connections))  # type: ignore[misc]
    return found


def _guarded(subject: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except (LedgerUnavailable, redis.RedisError, SQLAlchemyError) as error:
        return [_explained(subject, error)]


def _explained(subject: str, error: Exception) -> Finding:
    match error:
        case LedgerUnavailable():
            return Finding("postgres", Severity.AWAY, str(error), "Start it, or mend JOBLEDGER_DATABASE_URL.")
        case redis.ResponseError():
            return _refused(subject, error)
        case redis.RedisError():
            return Finding("redis", Severity.AWAY, f"Redis is away: {error}", "Start it, or mend JOBLEDGER_REDIS_URL.")
        case _:
            return Finding(subject, Severity.PROBLEM, f"Postgres says: {str(error).splitlines()[0]}", "See its log.")


def _refused(subject: str, error: redis.ResponseError) -> Finding:
    """The finding about a Redis that answers with an error."""
    words = f"Redis refuses: {error}"
    match error:
        case redis.exceptions.NoPermissionError() if subject == "redis":  # jobs run without these commands
            return Finding(subject, Severity.WARNING, words, "Allow its user INFO and TIME.")
        case redis.exceptions.NoPermissionError():
            remedy = "Allow its user the keys jobledger:* and rq:*, and the commands that use them."
        case redis.ReadOnlyError():
            remedy = "Have JOBLEDGER_REDIS_URL name the primary."
        case redis.exceptions.OutOfMemoryError():
            remedy = "Raise maxmemory, or lower JOBLEDGER_QUEUE_WINDOW."
        case _ if str(error).startswith("WRONGTYPE"):
            remedy = "Another application writes to jobledger:* or rq:*; give it, or jobledger, another Redis database."
        case _:
            remedy = "See the log of Redis."
    return Finding(subject, Severity.PROBLEM, words, remedy)


class _Skew:
    """The differences between the servers' clocks and this host's."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def note(self, server: str, epoch_seconds: float, asked_at: float) -> None:
        self._seconds[server] = epoch_seconds - (asked_at + time.time()) / 2

    def findings(self) -> Iterator[Finding]:
        for server, seconds in self._seconds.items():
            if abs(seconds) > MOST_SKEW_SECONDS:
                words = f"The clock of {server} is {seconds:+.1f} s from that of this host."
                yield Finding("clocks", Severity.WARNING, words, "Run NTP on all hosts; the ledger's is Postgres's.")
                return
        yield Finding("clocks", Severity.OK, f"within {MOST_SKEW_SECONDS:g} s of each other")


def _postgres(connections: Connections, known_revisions: tuple[str, ...], skew: _Skew) -> Iterator[Finding]:
    state = look_at_ledger(connections, known_revisions)
    asked_at = time.time()
    with connections.transaction(LOOK_SECONDS) as connection:
        facts = stats.facts(connection)
    skew.note("Postgres", facts.epoch_seconds, asked_at)
    words = f"revision {state.revision}"
    match state.schema:
        case Schema.CURRENT:
            yield Finding("schema", Severity.OK, words)
        case Schema.NEWER:
            yield Finding("schema", Severity.OK, f"{words}, newer than this code, which works with it")
        case _:
            yield Finding(
                "schema", Severity.PROBLEM, f"{words} is {state.schema}", "Run `python -m jobledger migrate`."
            )
    yield from _judge_postgres(facts)
    if state.set_back is not None:
        remedy = "Keep its host's clock by NTP, which slews it. Schedulers go on; fire times do not come a second time."
        yield Finding("clock", Severity.PROBLEM, str(state.set_back), remedy)


def _judge_postgres(facts: PostgresFacts) -> Iterator[Finding]:
    if facts.version < LEAST_POSTGRES:
        yield Finding("postgres", Severity.PROBLEM, f"version {facts.version}", "Use Postgres 14 or newer.")
        return
    unsafe = [name for name in ("fsync", "synchronous_commit") if getattr(facts, name) == "off"]
    if unsafe:
        words = f"{' and '.join(unsafe)} off: accepted jobs are lost if its machine fails"
        yield Finding("postgres", Severity.WARNING, words, "Switch them on.")
    else:
        yield Finding("postgres", Severity.OK, f"version {facts.version // 10_000}")


def _redis(connections: Connections, skew: _Skew) -> Iterator[Finding]:
    client = connections.maintenance_redis
    client.ping()
    asked_at = time.time()
    facts = queues.facts(client)
    skew.note("Redis", facts.epoch_seconds, asked_at)
    yield from judge_redis(facts)


def judge_redis(facts: RedisFacts) -> Iterator[Finding]:
    """The findings about the facts of Redis."""
    version = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit())
    if version < LEAST_REDIS:
        yield Finding("redis", Severity.PROBLEM, f"version {facts.version or '?'}", "Use Redis 6.2 or newer.")
    elif facts.eviction != "noeviction":
        words = f"maxmemory-policy is {facts.eviction!r}: wake-ups may be dropped"
        yield Finding("redis", Severity.PROBLEM, words, "Set maxmemory-policy noeviction.")
    elif facts.is_replica:
        words = "It is a replica: it takes no writes, or its primary never sees them."
        yield Finding("redis", Severity.PROBLEM, words, "Have JOBLEDGER_REDIS_URL name the primary.")
    else:
        yield Finding("redis", Severity.OK, f"version {facts.version}")
    if facts.limit_bytes and facts.memory_bytes > MOST_MEMORY * facts.limit_bytes:
        words = f"{facts.memory_bytes >> 20} of {facts.limit_bytes >> 20} MiB are used"
        yield Finding("redis memory", Severity.WARNING, words, "Raise maxmemory, or lower JOBLEDGER_QUEUE_WINDOW.")
    if not facts.has_aof:
        kept = "keeps only snapshots over a restart: every wake-up after the last one"
        words = f"It {kept if facts.has_snapshots else 'keeps nothing over a restart: every wake-up'} is pushed again."
        yield Finding("redis persistence", Severity.WARNING, words, "Set appendonly yes.")


def _writes(connections: Connections) -> Iterator[Finding]:
    queues.try_write(connections.maintenance_redis)
    yield Finding("redis writes", Severity.OK, "it takes writes")


def _ledger(connections: Connections) -> Iterator[Finding]:
    """The owner of the queues, and the wake-ups in them."""
    name, client, settings = ledger_name(connections), connections.maintenance_redis, connections.settings
    if name is None:
        return
    found = owner.owner(client, settings.queue_prefix)
    strange: Counter[str] = Counter()
    for queue in map(settings.queue_in_redis, queues.names(client, settings.queue_prefix)):
        ids = queues.read_slice(client, list_of(queue), MOST_COUNTED).ids
        others = queues.pushed_by_others(client, ids, name.id)
        with connections.transaction(LOOK_SECONDS) as connection:
            here = wakeups.standing(connection, others)
        strange.update(theirs for one, theirs in others.items() if one not in here)
    if found is not None and found.id != name.id:
        words, _, remedy = refusal(connections, name, found).partition(". ")
        yield Finding("ledger", Severity.PROBLEM, f"{words}.", remedy)
    elif strange:
        counts = ", ".join(f"{count} of ledger {theirs}" for theirs, count in strange.items())
        words = f"In the queues of this ledger, {name}, are wake-ups of others: {counts}."
        remedy = (
            "Say another JOBLEDGER_QUEUE_PREFIX, or Redis, where those are dispatched; if that ledger is gone, wait."
        )
        yield Finding("ledger", Severity.PROBLEM, words, remedy)
    else:
        yield Finding("ledger", Severity.OK, f"{name.id}; no other one has its queues in Redis")


def _repair(connections: Connections) -> Iterator[Finding]:
    with connections.transaction(LOOK_SECONDS) as connection:
        ages = heartbeats.ages_seconds(connection)
        seen = [
            one for one in heartbeats.list_schedulers(connection) if one.seen_seconds_ago <= heartbeats.SEEN_SECONDS
        ]
    name = stale_sweep(connections, ages)
    if name is None:
        yield Finding("repair", Severity.OK, "a scheduler relays, reaps and reconciles")
        return
    words = f"no process does `{name}`; last done {_ago(ages.get(name))}"
    remedy = f"See the log of the scheduler {seen[0].name}." if seen else "Run `python -m jobledger scheduler`."
    yield Finding("repair", Severity.PROBLEM, words, remedy)


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds:.0f} s ago" if seconds >= 0 else f"at a time that is {-seconds:.0f} s ahead"


def _workers(connections: Connections) -> Iterator[Finding]:
    found = queues.workers(connections.maintenance_redis)
    prefix = connections.settings.queue_prefix
    heard = {name.removeprefix(prefix) for one in found for name in one.queues if name.startswith(prefix)}
    nameless = sum(not one.queues for one in found)
    with connections.transaction(LOOK_SECONDS) as connection:
        waiting = {name: stats.queued_in(connection, name, MOST_COUNTED) for name in stats.queues_with_work(connection)}
    deaf = {name: count for name, count in waiting.items() if name not in heard}
    counts = ", ".join(f"{name} ({count}{'+' if count == MOST_COUNTED else ''})" for name, count in deaf.items())
    idle = ", ".join(name for name in connections.settings.queues if name not in heard)
    if deaf and nameless:
        words = f"Jobs wait in {counts}; {nameless} workers do not say which queues they take from."
        remedy = "Redis was emptied since they started. They work; restart them to see their queues."
        yield Finding("workers", Severity.WARNING, words, remedy)
    elif deaf:
        remedy = "Start workers with these queues, or add them to JOBLEDGER_QUEUES."
        yield Finding("workers", Severity.PROBLEM, f"Jobs wait in {counts}, and no worker takes them.", remedy)
    elif idle and not nameless:
        words = f"{len(found)} live; none takes from {idle}, where no job waits yet."
        remedy = "Start workers with these queues, or take them out of JOBLEDGER_QUEUES."
        yield Finding("workers", Severity.WARNING, words, remedy)
    else:
        yield Finding("workers", Severity.OK, f"{len(found)} live; every queue with jobs has a worker")


def _conservation(connections: Connections) -> Iterator[Finding]:
    yield from judge_conservation(conservation.count(connections))


_DRIFTS: Final = {
    "lost": "queued, and Redis has lost their wake-ups",
    "unpushed": "queued and not in Redis, which has room for them",
    "doubled": "more than once in Redis",
    "needless": "in Redis, though they are not queued",
    "without_row": "in Redis, and no job belongs to them",
    "unattended": "started, and their lease has run out",
    "leftovers": "ended, and still in RQ's registries",
    "astray": "leaked slots of limits, or keys with a wrong count",
}


def judge_conservation(counted: Conservation) -> Iterator[Finding]:
    """The findings about the counts of all places in which jobs are."""
    for name, words in _DRIFTS.items():
        if number := getattr(counted, name):
            remedy = "Schedulers mend it within a minute; or run `doctor --repair`."
            yield Finding("conservation", Severity.PROBLEM, f"{number} {words}", remedy)
    if not counted.is_exact:
        words = f"A list has more than {MOST_ENTRIES} entries: only a part was looked at."
        yield Finding("conservation", Severity.WARNING, words, "Lower JOBLEDGER_QUEUE_WINDOW.")
    elif not counted.drift:
        places = ("listed", "on_the_way", "held", "scheduled", "deferred", "running")
        total = sum(getattr(counted, name) for name in places)
        yield Finding("conservation", Severity.OK, f"{total} unfinished jobs, each in one place")


def repair(connections: Connections) -> tuple[Counter[str], list[Finding]]:
    """Run all chores again and again, until a round mends nothing, or something fails.

    It is not recorded as a sweep: one repair does not show that a scheduler repairs.

    Returns:
        The number of things mended, by kind; and the failures. Attempts under stale leases are reaped only if a process
        has been reaping for all of a lease: see `reaper`.
    """
    mended: Counter[str] = Counter()
    failed: list[Finding] = []
    for _ in range(MOST_ROUNDS):
        done = _do_chores(connections, failed)
        mended += done
        if failed or not done:
            break
    return mended, failed


def _do_chores(connections: Connections, failed: list[Finding]) -> Counter[str]:
    manner = Manner(is_sweep=False, entries=MOST_ENTRIES)
    done: Counter[str] = Counter()
    for what, step in [(step.mends, step) for chore in CHORES for step in chore.steps if step.mends is not None]:
        try:
            count = step.do(connections, manner) or 0
        except (LedgerUnavailable, redis.RedisError, SQLAlchemyError) as error:
            finding = _explained("mending", error)
            failed.append(replace(finding, message=f"Not mended, {what}: {finding.message}"))
            if finding.verdict is Severity.AWAY:
                break
            continue
        done += Counter({what: count} if isinstance(count, int) else {f"{what}: {key}": n for key, n in count.items()})
    return +done
