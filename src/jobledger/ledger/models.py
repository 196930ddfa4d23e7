"""The tables, with names for every constraint and CHECKs that refuse impossible rows.

Only `ledger` and the migrations see this module. A test holds it equal to what the migrations build.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobledger.status import TERMINAL, JobStatus, OnParentFailure, Outcome, PauseKind, Reason
from jobledger.tick import TickKind, TickOutcome

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _words(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


def _moment(name: str, *, nullable: bool = True, now: bool = False) -> "sa.Column[datetime]":
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=nullable,
        server_default=sa.text("now()") if now else None,
    )


def _count(name: str, default: int = 0) -> "sa.Column[int]":
    return sa.Column(name, sa.Integer, nullable=False, server_default=sa.text(str(default)))


schedules: Final = sa.Table(
    "schedules",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False, comment="The expression, as people read it"),
    sa.Column("timezone", sa.Text, nullable=False),
    _moment("created_at", nullable=False, now=True),
    _moment("updated_at", nullable=False, now=True),
    sa.Column("definition", pg.JSONB(none_as_null=True), comment="What decides; null if older code wrote the row"),
    sa.Column("fingerprint", sa.Text, comment="Of the definition"),
    sa.Column(
        "known_fingerprints",
        pg.ARRAY(sa.Text),
        nullable=False,
        server_default=sa.text("'{}'::text[]"),
        comment="Of all definitions so far",
    ),
    _moment("decided_until", nullable=False, now=True),
    _moment("seen_at", nullable=False, now=True),
    _moment("removed_at"),
    _moment("paused_at"),
    _moment("paused_until"),
    sa.Column("paused_by", sa.Text),
    sa.Column("pause_reason", sa.Text),
    sa.Column("error", sa.Text, comment="Why its last firing failed; null after one that did not"),
    _moment("failed_at"),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("name"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name_length"),
    sa.CheckConstraint("(definition IS NULL) = (fingerprint IS NULL)", name="definition_with_fingerprint"),
    sa.CheckConstraint("(error IS NULL) = (failed_at IS NULL)", name="error_with_time"),
    sa.CheckConstraint(
        "CASE WHEN paused_at IS NULL THEN paused_until IS NULL AND paused_by IS NULL AND pause_reason IS NULL"
        " ELSE paused_by IS NOT NULL END",
        name="pause_has_person",
    ),
)

schedule_ticks: Final = sa.Table(
    "schedule_ticks",
    metadata,
    sa.Column("schedule_id", sa.Uuid, nullable=False),
    _moment("fire_at", nullable=False),
    _moment("fired_at", now=True),
    sa.Column("scheduler", sa.Text, comment="host:pid of the process that fired it"),
    _moment("created_at", nullable=False, now=True),
    sa.Column("kind", sa.Text, nullable=False, server_default=sa.text("'scheduled'")),
    sa.Column("outcome", sa.Text, nullable=False, server_default=sa.text("'fired'")),
    _moment("previous_at"),
    sa.Column("timezone", sa.Text, nullable=False, server_default=sa.text("'UTC'")),
    sa.Column("requested_by", sa.Text, comment="Who asked for a manual tick or a backfill"),
    sa.Column("reason", sa.Text, comment="Why it was skipped or failed"),
    _count("errors"),
    sa.PrimaryKeyConstraint("schedule_id", "fire_at"),
    sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], ondelete="CASCADE"),
    sa.CheckConstraint(f"kind IN ({_words(TickKind)})", name="kind_known"),
    sa.CheckConstraint(f"outcome IN ({_words(TickOutcome)})", name="outcome_known"),
    sa.CheckConstraint("(outcome = 'fired') = (fired_at IS NOT NULL)", name="fired_has_time"),
    sa.CheckConstraint("outcome NOT IN ('skipped', 'failed') OR reason IS NOT NULL", name="unfired_has_reason"),
    sa.Index("ix_schedule_ticks_waiting", "schedule_id", "fire_at", postgresql_where=sa.text("outcome = 'waiting'")),
    # Prune.
    sa.Index(None, "created_at"),
)

schedulers: Final = sa.Table(
    "schedulers",
    metadata,
    sa.Column("name", sa.Text, nullable=False, comment="host:pid"),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    _moment("started_at", nullable=False, now=True),
    _moment("seen_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("name"),
)

job_statuses: Final = sa.Table(
    "job_statuses",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False, comment="UUIDv7, also the id of the RQ job"),
    sa.Column("job_type", sa.Text, nullable=False),
    sa.Column("title", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False, server_default=sa.text("5")),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("held_by", sa.Text, comment="What a queued job waits for; it is in no Redis list meanwhile"),
    sa.Column("reason", sa.Text, comment="Why it failed (a word) or was canceled (who and why)"),
    sa.Column("payload", pg.JSONB, nullable=False),
    sa.Column("result", pg.JSONB(none_as_null=True)),
    sa.Column("timeout_seconds", sa.Double, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0"), comment="Claims; the fence"),
    _count("errors"),
    _count("crashes"),
    _count("losses"),
    _count("max_attempts", 1),
    _moment("available_at", nullable=False, now=True),
    _moment("expires_at"),
    _moment("pushed_at"),
    _count("push_count"),
    sa.Column("idempotency_scope", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("unique_key", sa.Text),
    sa.Column("schedule_id", sa.Uuid),
    _moment("fire_at"),
    _count("waiting_parents"),
    sa.Column("has_children", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("has_on_failed", sa.Boolean, nullable=False, server_default=sa.false()),
    _moment("cancel_requested_at"),
    _moment("created_at", nullable=False, now=True),
    _moment("queued_at"),
    _moment("started_at"),
    _moment("finished_at"),
    _moment("updated_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("id"),
    sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], ondelete="SET NULL"),
    sa.CheckConstraint(f"status IN ({_words(JobStatus)})", name="status_known"),
    sa.CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({_words(TERMINAL)}))", name="finished_iff_terminal"),
    sa.CheckConstraint(
        f"CASE status WHEN 'failed' THEN reason IS NOT NULL AND reason IN ({_words(Reason)})"
        " WHEN 'canceled' THEN reason IS NOT NULL ELSE reason IS NULL END",
        name="reason_fits_status",
    ),
    sa.CheckConstraint("result IS NULL OR status = 'completed'", name="result_only_completed"),
    sa.CheckConstraint(
        "status NOT IN ('started', 'completed') OR (attempt >= 1 AND started_at IS NOT NULL)",
        name="started_has_attempt",
    ),
    sa.CheckConstraint("status <> 'queued' OR queued_at IS NOT NULL", name="queued_has_time"),
    sa.CheckConstraint("held_by IS NULL OR status = 'queued'", name="held_only_queued"),
    sa.CheckConstraint(
        "CASE status WHEN 'deferred' THEN waiting_parents > 0 WHEN 'canceled' THEN waiting_parents >= 0"
        " ELSE waiting_parents = 0 END",
        name="deferred_has_parents",
    ),
    sa.CheckConstraint(
        "attempt >= 0 AND errors >= 0 AND crashes >= 0 AND losses >= 0 AND push_count >= 0"
        " AND errors + crashes + losses <= attempt",
        name="counters_fit",
    ),
    sa.CheckConstraint("max_attempts BETWEEN 1 AND 1000", name="max_attempts_range"),
    sa.CheckConstraint("priority BETWEEN 1 AND 10", name="priority_range"),
    sa.CheckConstraint("timeout_seconds > 0", name="timeout_positive"),
    sa.CheckConstraint("jsonb_typeof(payload) = 'object'", name="payload_object"),
    sa.CheckConstraint(
        "char_length(job_type) BETWEEN 1 AND 200 AND char_length(queue) BETWEEN 1 AND 100", name="name_lengths"
    ),
    sa.CheckConstraint("(idempotency_scope IS NULL) = (idempotency_key IS NULL)", name="idempotency_scope_with_key"),
    # Newest first, by what people filter by. UUIDv7 sorts by the time of creation.
    sa.Index(None, "status", "id"),
    sa.Index(None, "job_type", "id"),
    sa.Index(None, "queue", "id"),
    # The relay: due rows; rows to push (pushed_at null); and the reconciler: rows pushed long ago.
    sa.Index("ix_job_statuses_due", "available_at", postgresql_where=sa.text("status = 'scheduled'")),
    sa.Index(
        "ix_job_statuses_unpushed",
        "queue",
        "priority",
        "queued_at",
        postgresql_where=sa.text("status = 'queued' AND held_by IS NULL AND pushed_at IS NULL"),
    ),
    sa.Index(
        "ix_job_statuses_queued",
        "queue",
        "pushed_at",
        postgresql_where=sa.text("status = 'queued' AND held_by IS NULL"),
    ),
    # Whether a schedule's earlier jobs have ended.
    sa.Index(
        "ix_job_statuses_unfinished_of_schedule",
        "schedule_id",
        postgresql_where=sa.text("schedule_id IS NOT NULL AND finished_at IS NULL"),
    ),
    # One unfinished job of each unique key.
    sa.Index(
        "uq_job_statuses_unique_key",
        "unique_key",
        unique=True,
        postgresql_where=sa.text("unique_key IS NOT NULL AND finished_at IS NULL"),
    ),
    sa.Index(
        "ix_job_statuses_expiring",
        "expires_at",
        postgresql_where=sa.text("expires_at IS NOT NULL AND attempt = 0 AND finished_at IS NULL"),
    ),
    # What is held by something: to be released in its order.
    sa.Index(
        "ix_job_statuses_held", "held_by", "priority", "queued_at", postgresql_where=sa.text("held_by IS NOT NULL")
    ),
    # Prune.
    sa.Index("ix_job_statuses_finished", "finished_at", postgresql_where=sa.text("finished_at IS NOT NULL")),
)

job_attempts: Final = sa.Table(
    "job_attempts",
    metadata,
    sa.Column("job_id", sa.Uuid, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text, nullable=False, comment="RQ's name of the worker"),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False, comment="Version of the code that ran it"),
    sa.Column("backend_pid", sa.Integer, nullable=False, comment="Its Postgres session, to be ended when fenced"),
    _moment("started_at", nullable=False, now=True),
    # In no index: renewing the lease is a heap-only update.
    _moment("lease_expires_at", nullable=False),
    _moment("finished_at"),
    sa.Column("outcome", sa.Text),
    sa.Column("error_type", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("progress_done", sa.BigInteger),
    sa.Column("progress_total", sa.BigInteger),
    sa.Column("progress_note", sa.Text),
    sa.Column("log_tail", sa.Text),
    sa.Column("peak_memory_bytes", sa.BigInteger),
    sa.PrimaryKeyConstraint("job_id", "number"),
    sa.ForeignKeyConstraint(["job_id"], ["job_statuses.id"], ondelete="CASCADE"),
    sa.CheckConstraint(f"outcome IN ({_words(Outcome)})", name="outcome_known"),
    sa.CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", name="outcome_iff_finished"),
    sa.CheckConstraint("number >= 1", name="number_positive"),
)


@sa.event.listens_for(job_attempts, "after_create")
def _leave_room(_table: object, connection: sa.Connection, **_: object) -> None:
    """Room on each page for the next version of a row, so that renewing a lease stays a heap-only update."""
    connection.execute(sa.text("ALTER TABLE job_attempts SET (fillfactor = 80)"))


job_dependencies: Final = sa.Table(
    "job_dependencies",
    metadata,
    sa.Column("parent_id", sa.Uuid, nullable=False),
    sa.Column("child_id", sa.Uuid, nullable=False),
    sa.Column("on_parent_failure", sa.Text, nullable=False, server_default=sa.text("'cancel'")),
    sa.Column(
        "is_over",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="The parent did not complete, and the child runs all the same",
    ),
    sa.PrimaryKeyConstraint("parent_id", "child_id"),
    sa.ForeignKeyConstraint(["parent_id"], ["job_statuses.id"], ondelete="CASCADE"),
    sa.ForeignKeyConstraint(["child_id"], ["job_statuses.id"], ondelete="CASCADE"),
    sa.CheckConstraint("parent_id <> child_id", name="not_itself"),
    sa.CheckConstraint(f"on_parent_failure IN ({_words(OnParentFailure)})", name="on_parent_failure_known"),
    # The delete of a pruned child looks here; a job page will.
    sa.Index(None, "child_id"),
)

lost_wakes: Final = sa.Table(
    "lost_wakes",
    metadata,
    # No foreign key: adding it would wait for every transaction that has written to job_statuses, such as a long job's.
    sa.Column("job_id", sa.Uuid, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, comment="Claims before the losses; a claim starts them anew"),
    _count("losses"),
    _moment("lost_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("job_id"),
    # Prune.
    sa.Index(None, "lost_at"),
)

idempotency_keys: Final = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("payload_hash", sa.Text, nullable=False, comment="Of the job's type and payload"),
    # No foreign key: a key outlives its job.
    sa.Column("job_id", sa.Uuid, nullable=False),
    _moment("created_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("scope", "key"),
    # Prune.
    sa.Index(None, "created_at"),
)

unique_windows: Final = sa.Table(
    "unique_windows",
    metadata,
    sa.Column("unique_key", sa.Text, nullable=False),
    _moment("until", nullable=False),
    sa.Column("job_id", sa.Uuid, nullable=False),
    sa.PrimaryKeyConstraint("unique_key"),
    # Prune.
    sa.Index(None, "until"),
)

cancel_requests: Final = sa.Table(
    "cancel_requests",
    metadata,
    # No foreign key: see lost_wakes.
    sa.Column("job_id", sa.Uuid, nullable=False),
    _moment("requested_at", nullable=False),
    sa.Column("reason", sa.Text, nullable=False, comment="Who and why; the reason of the job when it is canceled"),
    sa.PrimaryKeyConstraint("job_id"),
    # Prune.
    sa.Index(None, "requested_at"),
)

pauses: Final = sa.Table(
    "pauses",
    metadata,
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False, comment="Of the queue, or the job type"),
    _moment("paused_at", nullable=False, now=True),
    sa.Column("paused_by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.PrimaryKeyConstraint("kind", "name"),
    sa.CheckConstraint(f"kind IN ({_words(PauseKind)})", name="kind_known"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name_length"),
)

redis_epoch: Final = sa.Table(
    "redis_epoch",
    metadata,
    sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("epoch", sa.Text, nullable=False, comment="Mark left in Redis, and the run of its server"),
    _moment("since", nullable=False, now=True),
    sa.PrimaryKeyConstraint("only_row"),
    sa.CheckConstraint("only_row", name="only_row"),
)

sweeps: Final = sa.Table(
    "sweeps",
    metadata,
    sa.Column("name", sa.Text, nullable=False),
    _moment("swept_at", nullable=False, now=True),
    _moment("resumed_at", nullable=False, now=True),
    sa.Column("swept_by", sa.Text, nullable=False, comment="host:pid of the process that swept last"),
    sa.PrimaryKeyConstraint("name"),
)
