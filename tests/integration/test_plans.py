"""What repair asks again and again is answered along an index, however many jobs there are."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger import Connections
from jobledger.domain.records import Evidence, Runner, Untold
from jobledger.domain.status import JobStatus, PauseKind
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import leases, limit_counts, moves, pauses, prune, queries, stats, uniqueness, wakeups
from jobledger.ledger.moves.waiting import Expired
from jobledger.ledger.queries import Filter
from jobledger.worker import spare

JOBS = 200_000
SOME = [UUID(int=number) for number in range(1, 100)]
QUEUED, LIMITED, STARTED = UUID(int=18), UUID(int=39), UUID(int=2000)
ME = Runner(worker="w", host="h", pid=1, version="1")
BIG = ("job_statuses", "job_attempts", "job_limits")


@pytest.fixture(scope="module")
def database_url(servers: EmbeddedServers) -> Iterator[str]:
    """A database with many jobs: most have ended, and of each other kind there are thousands."""
    servers.postgres.create_database("plans", template="template_jobledger")
    url = servers.postgres.url_for("plans")
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"""
            INSERT INTO job_statuses (id, job_type, queue, status, payload, timeout_seconds, attempt, waiting_parents,
                                      available_at, queued_at, pushed_at, started_at, finished_at)
            SELECT CAST(lpad(to_hex(n), 32, '0') AS uuid), 'Echo', 'q' || mod(n, 4), s.status, '{{}}', 60,
                   CASE WHEN s.status IN ('started', 'completed') THEN 1 ELSE 0 END,
                   CASE WHEN s.status = 'deferred' THEN 1 ELSE 0 END,
                   now() + make_interval(secs => mod(n, 1000)), now() - make_interval(secs => mod(n, 5000)),
                   CASE WHEN s.status = 'queued' AND mod(n, 2) = 0 THEN now() - make_interval(secs => mod(n, 5000)) END,
                   CASE WHEN s.status IN ('started', 'completed') THEN now() END,
                   CASE WHEN s.status = 'completed' THEN now() END
              FROM generate_series(1, {JOBS}) AS n
             CROSS JOIN LATERAL (SELECT CASE WHEN mod(n, 2000) = 0 THEN 'started'
                                             WHEN mod(n, 20) < 16 THEN 'completed' WHEN mod(n, 20) = 16 THEN 'scheduled'
                                             WHEN mod(n, 20) = 17 THEN 'deferred' ELSE 'queued' END AS status) AS s
        """)
        connection.exec_driver_sql("""
            INSERT INTO job_attempts (job_id, number, worker, host, pid, version, backend_pid, lease_expires_at,
                                      finished_at, outcome)
            SELECT id, 1, 'w', 'h', 1, '1', 1, now(), finished_at, CASE WHEN status = 'completed' THEN 'completed' END
              FROM job_statuses WHERE attempt = 1 AND queue = 'q0'
        """)
        connection.exec_driver_sql("""
            INSERT INTO job_limits (job_id, kind, key, most, window_seconds, has_slot)
            SELECT id, 'limit', CASE WHEN status = 'queued' THEN 'a' ELSE 'b' END, 10, NULL, status = 'started'
              FROM job_statuses WHERE status = 'started' OR queue = 'q3' AND status IN ('queued', 'completed')
             UNION ALL
            SELECT id, 'rate', 'r' || length(CAST(id AS text)), 5, 60, false
              FROM job_statuses WHERE queue = 'q3' AND status = 'queued'
        """)
        connection.exec_driver_sql("""
            INSERT INTO limit_keys (kind, key, taken, starts)
            SELECT 'limit', key, 5, '{}' FROM (VALUES ('a'), ('b')) AS l(key)
             UNION ALL
            SELECT 'rate', 'r' || n, 0, ARRAY[now(), now(), now(), now(), now()] FROM generate_series(1, 1000) AS n
        """)
        connection.exec_driver_sql("""
            UPDATE job_statuses SET held_by = 'limit:a' WHERE queue = 'q3' AND status = 'queued' AND pushed_at IS NULL
               AND right(CAST(id AS text), 1) IN ('3', '7')
        """)
        connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()
    yield url
    servers.postgres.drop_database("plans")


ASKED: dict[str, Any] = {
    "queues with work": stats.queues_with_work,
    "queues with unpushed": stats.queues_with_unpushed,
    "overdue unpushed": lambda ledger: stats.overdue_unpushed(ledger, "q3", 15.0, 500),
    "counts of the unfinished": stats.unfinished,
    "take unpushed": lambda ledger: wakeups.take_unpushed(ledger, "q3", 500),
    "selected": lambda ledger: queries.selected(
        ledger,
        Filter([JobStatus.QUEUED, JobStatus.SCHEDULED], queue="q1"),
        datetime.now(UTC),
        SOME[5],
        500,
        ended=False,
    ),
    "cancel many": lambda ledger: moves.cancel_many(ledger, SOME, [JobStatus.QUEUED], "canceled by me"),
    "retry many": lambda ledger: moves.retry_many(ledger, SOME, [JobStatus.FAILED], datetime.now(UTC)),
    "lock": lambda ledger: queries.lock(ledger, SOME[5]),
    "queue in use": lambda ledger: queries.is_in_use(ledger, PauseKind.QUEUE, "none"),
    "type in use": lambda ledger: queries.is_in_use(ledger, PauseKind.TYPE, "None"),
    "pauses that have ended": pauses.ended,
    "claim": lambda ledger: moves.claim(ledger, QUEUED, ME, 30.0),
    "claim with limits": lambda ledger: moves.claim_limited(ledger, LIMITED, ME, 30.0),
    "keys of a claim": lambda ledger: moves.make_limit_keys(ledger, LIMITED),
    "complete": lambda ledger: moves.complete(ledger, STARTED, 1, None, Evidence()),
    "renew a lease": lambda ledger: leases.renew(ledger, STARTED, 1, 30.0, leases.Progress()),
    "running": lambda ledger: leases.running(ledger, 5.0, 500),
    "lines of slots": limit_counts.lines,
    "release by a slot": lambda ledger: moves.release_oldest(ledger, "limit:a"),
    "make way in a line": lambda ledger: moves.make_way(ledger, "limit:a", 2000, 2000),
    "slots that are miscounted": lambda ledger: limit_counts.miscounted(ledger, 500),
    "slots that go astray": lambda ledger: limit_counts.leaked(ledger, 500),
    "slots given back": lambda ledger: moves.give_back_slots(ledger, SOME),
    "release held": lambda ledger: pauses.release(ledger, "pause:queue:q1", 500),
    "pushed until": lambda ledger: wakeups.pushed_until(ledger, "q2", datetime.now(UTC), None, 5000),
    "overdue": lambda ledger: wakeups.overdue(ledger, "q2", 15.0, SOME[17], 500),
    "recent": lambda ledger: wakeups.recent(ledger, "q2", 1.0, 15.0, None, 500),
    "promote due": lambda ledger: moves.promote_due(ledger, 500),
    "overdue to be started": lambda ledger: moves.expired(ledger, None, 500),
    "overdue to be started, next": lambda ledger: moves.expired(
        ledger, Expired(SOME[5], False, datetime.now(UTC)), 500
    ),
    "expire": lambda ledger: moves.expire(ledger, SOME, with_children=False),
    "unfinished of a key": lambda ledger: uniqueness.unfinished(ledger, "Echo:5"),
    "rival": lambda ledger: uniqueness.conflicting(ledger, SOME[5]),
    "in window": lambda ledger: uniqueness.in_window(ledger, "Echo:5"),
    "idempotency key": lambda ledger: uniqueness.find_key(ledger, "python", "5"),
    "prune keys": lambda ledger: prune.prune_idempotency_keys(ledger, 5.0, 500),
    "standing": lambda ledger: wakeups.standing(ledger, SOME),
    "lock idle": lambda ledger: wakeups.lock_idle(ledger, SOME),
    "long ended": lambda ledger: wakeups.long_ended(ledger, SOME, 60.0),
    "deferred between": moves.deferred_between,
    "next children": lambda ledger: moves.next_children(ledger, [Untold(one) for one in SOME[:20]], 25),
    "release children": lambda ledger: moves.release_children(ledger, [(SOME[5], one) for one in SOME]),
    "cancel children": lambda ledger: moves.cancel_children(ledger, dict.fromkeys(SOME, "parent failed")),
    "retry": lambda ledger: moves.retry(ledger, SOME[5]),
    "orphans": lambda ledger: moves.stuck_children(ledger, SOME[0], 1000),
}


def plan_of(ledger: Connection, ask: Any) -> str:
    """The plans of all statements that something executes."""
    executed: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        executed.append((statement, parameters))

    sa.event.listen(ledger, "before_cursor_execute", note)
    ask(ledger)
    sa.event.remove(ledger, "before_cursor_execute", note)
    assert executed
    plans = [ledger.exec_driver_sql(f"EXPLAIN {statement}", parameters) for statement, parameters in executed]
    return "\n".join(line for plan in plans for line in plan.scalars())


@pytest.mark.parametrize("name", ASKED)
def test_no_statement_reads_all_jobs(connections: Connections, name: str) -> None:
    with connections.engine.connect() as ledger:
        plan = plan_of(ledger, ASKED[name])

    for table in BIG:
        assert f"Seq Scan on {table}" not in plan, plan
    assert "Index" in plan


def test_the_prepared_statements_of_a_run_do_neither(connections: Connections) -> None:
    """Whatever the parameters: the server plans them once for a connection that lives long."""
    with connections.engine.connect() as ledger:
        spare.for_work_horses(ledger.connection.dbapi_connection).prepare()
        ledger.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        prepared = ledger.exec_driver_sql("SELECT name, cardinality(parameter_types) FROM pg_prepared_statements").all()
        assert {name for name, _ in prepared} == {"jobledger_claim", "jobledger_complete"}
        for name, count in prepared:
            arguments = ", ".join(["NULL"] * count)
            plan = "\n".join(ledger.exec_driver_sql(f"EXPLAIN EXECUTE {name} ({arguments})").scalars())
            assert "Seq Scan on job_" not in plan, plan
            assert "Index Scan" in plan
