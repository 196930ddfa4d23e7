"""Looks at everything that jobledger stands on, says what is wrong with it, and repairs what can be repaired."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import redis
from sqlalchemy.exc import SQLAlchemyError

from jobledger import queues
from jobledger.connections import Connections
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import census, queries, sweeps
from jobledger.ledger.census import PostgresFacts
from jobledger.maintenance.clean import clean
from jobledger.maintenance.epoch import find_late_workers, notice_epoch
from jobledger.maintenance.expire import expire
from jobledger.maintenance.orphans import release_orphans
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.relay import relay
from jobledger.maintenance.tend_slots import tend_slots
from jobledger.observe import conservation
from jobledger.observe.conservation import MOST_ENTRIES, Conservation
from jobledger.observe.health import STALE_SECONDS, STALE_SWEEPS, Schema, look_at_ledger
from jobledger.queues import RedisFacts

LOOK_SECONDS: Final = 3.0
MOST_SKEW_SECONDS: Final = 2.0
LEAST_REDIS: Final = (6, 2)
LEAST_POSTGRES: Final = 140_000
MOST_MEMORY: Final = 0.9
"""Of what Redis may use."""

MOST_COUNTED: Final = 1000
MOST_ROUNDS: Final = 20


class Verdict(StrEnum):
    """What a look came to."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not when something else goes wrong."""
    PROBLEM = "problem"
    AWAY = "away"
    """A server did not answer: a problem, too."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        message: what is so.
        remedy: what to do about it; empty if nothing.
    """

    subject: str
    verdict: Verdict
    message: str
    remedy: str = ""


def examine(connections: Connections, known_revisions: tuple[str, ...]) -> list[Finding]:
    """Look at both servers and at what runs on them.

    Args:
        connections: the servers.
        known_revisions: of the schema, the one that the code needs first.

    Returns:
        What was found: nothing is raised if a server is away, or freezes while it is asked.
    """
    skew = _Skew()
    found = [*_guarded("postgres", lambda: _postgres(connections, known_revisions, skew))]
    found += _guarded("redis", lambda: _redis(connections, skew))
    if any(one.verdict is Verdict.AWAY for one in found):
        return found
    found += skew.findings()
    if any(one.subject == "schema" and one.verdict is Verdict.PROBLEM for one in found):
        return found
    for subject, look in (("repair", _repair), ("workers", _workers), ("conservation", _conservation)):
        found += _guarded(subject, lambda look=look: look(connections))  # type: ignore[misc]
    return found


def _guarded(subject: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except LedgerUnavailable as error:
        return [Finding("postgres", Verdict.AWAY, str(error), "Start it, or mend JOBLEDGER_DATABASE_URL.")]
    except redis.ResponseError as error:
        return [Finding(subject, Verdict.WARNING, f"Redis refuses to answer: {error}", "Allow INFO and TIME.")]
    except redis.RedisError as error:
        return [Finding("redis", Verdict.AWAY, f"Redis is away: {error}", "Start it, or mend JOBLEDGER_REDIS_URL.")]
    except SQLAlchemyError as error:
        return [Finding(subject, Verdict.PROBLEM, f"Postgres says: {str(error).splitlines()[0]}", "See its log.")]


class _Skew:
    """By how much the servers' clocks differ from this host's."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def note(self, server: str, epoch_seconds: float, asked_at: float) -> None:
        self._seconds[server] = epoch_seconds - (asked_at + time.time()) / 2

    def findings(self) -> Iterator[Finding]:
        for server, seconds in self._seconds.items():
            if abs(seconds) > MOST_SKEW_SECONDS:
                words = f"The clock of {server} is {seconds:+.1f} s from that of this host."
                yield Finding("clocks", Verdict.WARNING, words, "Run NTP on all hosts; the ledger's is Postgres's.")
                return
        yield Finding("clocks", Verdict.OK, f"within {MOST_SKEW_SECONDS:g} s of each other")


def _postgres(connections: Connections, known_revisions: tuple[str, ...], skew: _Skew) -> Iterator[Finding]:
    state = look_at_ledger(connections, known_revisions)
    asked_at = time.time()
    with connections.transaction(LOOK_SECONDS) as connection:
        facts = census.facts(connection)
    skew.note("Postgres", facts.epoch_seconds, asked_at)
    words = f"revision {state.revision}"
    match state.schema:
        case Schema.CURRENT:
            yield Finding("schema", Verdict.OK, words)
        case Schema.NEWER:
            yield Finding("schema", Verdict.OK, f"{words}, newer than this code, which works with it")
        case _:
            yield Finding("schema", Verdict.PROBLEM, f"{words} is {state.schema}", "Run `python -m jobledger migrate`.")
    yield from _judge_postgres(facts)


def _judge_postgres(facts: PostgresFacts) -> Iterator[Finding]:
    if facts.version < LEAST_POSTGRES:
        yield Finding("postgres", Verdict.PROBLEM, f"version {facts.version}", "Use Postgres 14 or newer.")
        return
    unsafe = [name for name in ("fsync", "synchronous_commit") if getattr(facts, name) == "off"]
    if unsafe:
        words = f"{' and '.join(unsafe)} off: accepted jobs are lost if its machine fails"
        yield Finding("postgres", Verdict.WARNING, words, "Switch on what is off.")
    else:
        yield Finding("postgres", Verdict.OK, f"version {facts.version // 10_000}")


def _redis(connections: Connections, skew: _Skew) -> Iterator[Finding]:
    client = connections.maintenance_redis
    client.ping()
    asked_at = time.time()
    facts = queues.facts(client)
    skew.note("Redis", facts.epoch_seconds, asked_at)
    yield from judge_redis(facts)


def judge_redis(facts: RedisFacts) -> Iterator[Finding]:
    """What to say of what Redis says of itself."""
    version = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit())
    if version < LEAST_REDIS:
        yield Finding("redis", Verdict.PROBLEM, f"version {facts.version or '?'}", "Use Redis 6.2 or newer.")
    elif facts.eviction != "noeviction":
        words = f"maxmemory-policy is {facts.eviction!r}: wake-ups may be dropped"
        yield Finding("redis", Verdict.PROBLEM, words, "Set maxmemory-policy noeviction.")
    else:
        yield Finding("redis", Verdict.OK, f"version {facts.version}")
    if facts.limit_bytes and facts.memory_bytes > MOST_MEMORY * facts.limit_bytes:
        words = f"{facts.memory_bytes >> 20} of {facts.limit_bytes >> 20} MiB are used"
        yield Finding("redis memory", Verdict.WARNING, words, "Raise maxmemory, or lower JOBLEDGER_QUEUE_WINDOW.")
    if not facts.has_aof:
        words = "It keeps nothing over a restart: all that waits is pushed again then."
        yield Finding("redis persistence", Verdict.WARNING, words, "Set appendonly yes.")


def _repair(connections: Connections) -> Iterator[Finding]:
    settings = connections.settings
    with connections.transaction(LOOK_SECONDS) as connection:
        ages = sweeps.ages_seconds(connection)
    pauses = {sweeps.RELAY: settings.relay_seconds, sweeps.REAP: settings.sweep_seconds}
    pauses[sweeps.RECONCILE] = settings.sweep_seconds
    for name, pause in pauses.items():
        age = ages.get(name)
        if age is None or age > max(STALE_SECONDS, STALE_SWEEPS * pause):
            words = f"nobody does `{name}`; last done {'never' if age is None else f'{age:.0f} s ago'}"
            yield Finding("repair", Verdict.PROBLEM, words, "Run `python -m jobledger scheduler`.")
            return
    yield Finding("repair", Verdict.OK, "somebody relays, reaps and reconciles")


def _workers(connections: Connections) -> Iterator[Finding]:
    found = queues.workers(connections.maintenance_redis)
    heard = {name for one in found for name in one.queues}
    nameless = [one.name for one in found if not one.queues]
    with connections.transaction(LOOK_SECONDS) as connection:
        waiting = {
            name: census.queued_in(connection, name, MOST_COUNTED) for name in queries.queues_with_work(connection)
        }
    deaf = {name: count for name, count in waiting.items() if name not in heard}
    if not deaf:
        yield Finding("workers", Verdict.OK, f"{len(found)} live; no job waits in a queue of nobody's")
        return
    counts = ", ".join(f"{name} ({count}{'+' if count == MOST_COUNTED else ''})" for name, count in deaf.items())
    if nameless:
        words = f"Jobs wait in {counts}; {len(nameless)} workers do not say which queues they take from."
        remedy = "Redis was emptied since they started. Restart them, if that shall be seen; they work."
        yield Finding("workers", Verdict.WARNING, words, remedy)
    else:
        remedy = "Start workers with these queues, or add them to JOBLEDGER_QUEUES."
        yield Finding("workers", Verdict.PROBLEM, f"Jobs wait in {counts}, and no worker takes them.", remedy)


def _conservation(connections: Connections) -> Iterator[Finding]:
    yield from judge_conservation(conservation.count(connections))


_DRIFTS: Final = {
    "lost": "queued, and Redis has lost their wake-ups",
    "doubled": "more than once in Redis",
    "needless": "in Redis, though they are not queued",
    "without_row": "in Redis, and no job belongs to them",
    "unattended": "started, and their lease has run out",
    "leftovers": "ended, and RQ still thinks of them",
    "astray": "slots of limits that are nobody's, or keys that are miscounted",
}


def judge_conservation(counted: Conservation) -> Iterator[Finding]:
    """What to say of the places in which jobs are."""
    for name, words in _DRIFTS.items():
        if number := getattr(counted, name):
            remedy = "Schedulers mend it within a minute; or say --repair."
            yield Finding("conservation", Verdict.PROBLEM, f"{number} {words}", remedy)
    if not counted.is_exact:
        words = f"A list has more than {MOST_ENTRIES} entries: only a part was looked at."
        yield Finding("conservation", Verdict.WARNING, words, "Lower JOBLEDGER_QUEUE_WINDOW.")
    elif not counted.drift:
        places = ("listed", "on_the_way", "held", "scheduled", "deferred", "running")
        total = sum(getattr(counted, name) for name in places)
        yield Finding("conservation", Verdict.OK, f"{total} unfinished jobs, each in one place")


def repair(connections: Connections) -> Counter[str]:
    """Do all chores again and again, until nothing has drifted, or nothing more changes.

    Returns:
        What was mended, and how often. Attempts under leases that have run out are reaped only if somebody has been
        reaping for all of a lease: see `reaper`.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away.
    """
    mended: Counter[str] = Counter()
    for _ in range(MOST_ROUNDS):
        done = _do_chores(connections)
        mended += done
        if not done:
            break
    return mended


def _do_chores(connections: Connections) -> Counter[str]:
    done: Counter[str] = Counter(
        {
            "wake-ups that an emptied or other Redis does not have": notice_epoch(connections),
            "workers that Redis had forgotten": find_late_workers(connections),
            "attempts that nobody ran any more": reap(connections),
            "jobs that were not started in time": expire(connections),
            "wake-ups that were lost": reconcile(connections),
            "jobs that waited for nobody": release_orphans(connections),
            "slots that stood free, or were miscounted": tend_slots(connections),
            "wake-ups that were pushed": relay(connections),
        }
    )
    for what, count in clean(connections, MOST_ENTRIES).items():
        done[f"entries of Redis: {what}"] += count
    return +done
