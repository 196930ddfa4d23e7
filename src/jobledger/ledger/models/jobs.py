"""Jobs, their attempts, and their dependencies."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobledger.domain.status import TERMINAL, JobStatus, OnParentFailure, Outcome, Reason
from jobledger.ledger.models.columns import count, metadata, moment, words

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
    count("errors"),
    count("crashes"),
    count("losses"),
    count("max_attempts", 1),
    moment("available_at", nullable=False, now=True),
    moment("expires_at"),
    moment("pushed_at"),
    count("push_count"),
    sa.Column("idempotency_scope", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("unique_key", sa.Text),
    sa.Column("schedule_id", sa.Uuid),
    moment("fire_at"),
    count("waiting_parents"),
    sa.Column("has_children", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("has_on_failed", sa.Boolean, nullable=False, server_default=sa.false()),
    moment("cancel_requested_at"),
    moment("created_at", nullable=False, now=True),
    moment("queued_at"),
    moment("started_at"),
    moment("finished_at"),
    moment("updated_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("id"),
    sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], ondelete="SET NULL"),
    sa.CheckConstraint(f"status IN ({words(JobStatus)})", name="status_known"),
    sa.CheckConstraint(f"(finished_at IS NOT NULL) = (status IN ({words(TERMINAL)}))", name="finished_iff_terminal"),
    sa.CheckConstraint(
        f"CASE status WHEN 'failed' THEN reason IS NOT NULL AND reason IN ({words(Reason)})"
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
    # Held jobs, in the order of their release.
    sa.Index(
        "ix_job_statuses_held",
        "held_by",
        "priority",
        "queued_at",
        "id",
        postgresql_where=sa.text("held_by IS NOT NULL"),
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
    sa.Column("backend_pid", sa.Integer, comment="Its Postgres session, to be ended when fenced"),
    moment("started_at", nullable=False, now=True),
    # In no index: renewing the lease is a heap-only update.
    moment("lease_expires_at", nullable=False),
    moment("finished_at"),
    sa.Column("outcome", sa.Text),
    sa.Column("error_type", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("progress_done", sa.BigInteger),
    sa.Column("progress_total", sa.BigInteger),
    sa.Column("progress_note", sa.Text),
    sa.Column("log_tail", sa.Text),
    sa.Column("peak_memory_bytes", sa.BigInteger),
    sa.Column(
        "isolated",
        sa.Boolean,
        nullable=False,
        server_default=sa.true(),
        comment="The process ran this attempt alone: its death is the job's",
    ),
    sa.Column("token", sa.Uuid, comment="Of the delivery that claimed"),
    moment("backend_started_at"),
    sa.PrimaryKeyConstraint("job_id", "number"),
    sa.ForeignKeyConstraint(["job_id"], ["job_statuses.id"], ondelete="CASCADE"),
    sa.CheckConstraint(f"outcome IN ({words(Outcome)})", name="outcome_known"),
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
        comment="The child waits for the parent no longer: that completed, or the child runs all the same",
    ),
    sa.PrimaryKeyConstraint("parent_id", "child_id"),
    sa.ForeignKeyConstraint(["parent_id"], ["job_statuses.id"], ondelete="CASCADE"),
    sa.ForeignKeyConstraint(["child_id"], ["job_statuses.id"], ondelete="CASCADE"),
    sa.CheckConstraint("parent_id <> child_id", name="not_itself"),
    sa.CheckConstraint(f"on_parent_failure IN ({words(OnParentFailure)})", name="on_parent_failure_known"),
    # The delete of a pruned child looks here; a job page will.
    sa.Index(None, "child_id"),
)
