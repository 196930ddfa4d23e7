"""The ledger: jobs, their attempts and dependencies, schedules and their ticks, sweeps.

The first revision: there is no previous code that could still run.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False, comment="The expression, as people read it"),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name=op.f("ck_schedules_name_length")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("name", name=op.f("uq_schedules_name")),
    )
    op.create_table(
        "sweeps",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("swept_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("resumed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("swept_by", sa.Text(), nullable=False, comment="host:pid of the process that swept last"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sweeps")),
    )
    op.create_table(
        "job_statuses",
        sa.Column("id", sa.Uuid(), nullable=False, comment="UUIDv7, also the id of the RQ job"),
        sa.Column("job_type", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("5"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column(
            "held_by", sa.Text(), nullable=True, comment="What a queued job waits for; it is in no Redis list meanwhile"
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="Why it failed (a word) or was canceled (who and why)"),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("result", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("timeout_seconds", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="Claims; the fence"),
        sa.Column("errors", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("crashes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("losses", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("push_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("idempotency_scope", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("unique_key", sa.Text(), nullable=True),
        sa.Column("schedule_id", sa.Uuid(), nullable=True),
        sa.Column("fire_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("waiting_parents", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("has_children", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("has_on_failed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('canceled', 'completed', 'failed'))",
            name=op.f("ck_job_statuses_finished_iff_terminal"),
        ),
        sa.CheckConstraint(
            "CASE status WHEN 'deferred' THEN waiting_parents > 0 WHEN 'canceled' THEN waiting_parents >= 0 ELSE waiting_parents = 0 END",
            name=op.f("ck_job_statuses_deferred_has_parents"),
        ),
        sa.CheckConstraint(
            "CASE status WHEN 'failed' THEN reason IS NOT NULL AND reason IN ('crashed', 'error', 'expired', 'lost', 'timeout', 'undispatchable') WHEN 'canceled' THEN reason IS NOT NULL ELSE reason IS NULL END",
            name=op.f("ck_job_statuses_reason_fits_status"),
        ),
        sa.CheckConstraint("held_by IS NULL OR status = 'queued'", name=op.f("ck_job_statuses_held_only_queued")),
        sa.CheckConstraint("jsonb_typeof(payload) = 'object'", name=op.f("ck_job_statuses_payload_object")),
        sa.CheckConstraint(
            "result IS NULL OR status = 'completed'", name=op.f("ck_job_statuses_result_only_completed")
        ),
        sa.CheckConstraint("status <> 'queued' OR queued_at IS NOT NULL", name=op.f("ck_job_statuses_queued_has_time")),
        sa.CheckConstraint(
            "status IN ('canceled', 'completed', 'deferred', 'failed', 'queued', 'scheduled', 'started')",
            name=op.f("ck_job_statuses_status_known"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('started', 'completed') OR (attempt >= 1 AND started_at IS NOT NULL)",
            name=op.f("ck_job_statuses_started_has_attempt"),
        ),
        sa.CheckConstraint(
            "(idempotency_scope IS NULL) = (idempotency_key IS NULL)",
            name=op.f("ck_job_statuses_idempotency_scope_with_key"),
        ),
        sa.CheckConstraint(
            "attempt >= 0 AND errors >= 0 AND crashes >= 0 AND losses >= 0 AND push_count >= 0 AND errors + crashes + losses <= attempt",
            name=op.f("ck_job_statuses_counters_fit"),
        ),
        sa.CheckConstraint(
            "char_length(job_type) BETWEEN 1 AND 200 AND char_length(queue) BETWEEN 1 AND 100",
            name=op.f("ck_job_statuses_name_lengths"),
        ),
        sa.CheckConstraint("max_attempts BETWEEN 1 AND 1000", name=op.f("ck_job_statuses_max_attempts_range")),
        sa.CheckConstraint("priority BETWEEN 1 AND 10", name=op.f("ck_job_statuses_priority_range")),
        sa.CheckConstraint("timeout_seconds > 0", name=op.f("ck_job_statuses_timeout_positive")),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_job_statuses_schedule_id_schedules"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_statuses")),
    )
    op.create_index(
        "ix_job_statuses_due",
        "job_statuses",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("status = 'scheduled'"),
    )
    op.create_index(
        "ix_job_statuses_finished",
        "job_statuses",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_job_statuses_job_type_id"), "job_statuses", ["job_type", "id"], unique=False)
    op.create_index(op.f("ix_job_statuses_queue_id"), "job_statuses", ["queue", "id"], unique=False)
    op.create_index(
        "ix_job_statuses_queued",
        "job_statuses",
        ["queue", "pushed_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND held_by IS NULL"),
    )
    op.create_index(
        "ix_job_statuses_unpushed",
        "job_statuses",
        ["queue", "priority", "queued_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND held_by IS NULL AND pushed_at IS NULL"),
    )
    op.create_index(op.f("ix_job_statuses_status_id"), "job_statuses", ["status", "id"], unique=False)
    op.create_table(
        "schedule_ticks",
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("fire_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fired_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("scheduler", sa.Text(), nullable=False, comment="host:pid of the process that fired it"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("fk_schedule_ticks_schedule_id_schedules"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("schedule_id", "fire_at", name=op.f("pk_schedule_ticks")),
    )
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False, comment="RQ's name of the worker"),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False, comment="Version of the code that ran it"),
        sa.Column("backend_pid", sa.Integer(), nullable=False, comment="Its Postgres session, to be ended when fenced"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("progress_done", sa.BigInteger(), nullable=True),
        sa.Column("progress_total", sa.BigInteger(), nullable=True),
        sa.Column("progress_note", sa.Text(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('completed', 'crashed', 'error', 'lost', 'timeout', 'unknown_type')",
            name=op.f("ck_job_attempts_outcome_known"),
        ),
        sa.CheckConstraint(
            "(outcome IS NULL) = (finished_at IS NULL)", name=op.f("ck_job_attempts_outcome_iff_finished")
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_job_attempts_number_positive")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job_statuses.id"], name=op.f("fk_job_attempts_job_id_job_statuses"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_attempts")),
    )
    op.execute("ALTER TABLE job_attempts SET (fillfactor = 80)")
    op.create_table(
        "job_dependencies",
        sa.Column("parent_id", sa.Uuid(), nullable=False),
        sa.Column("child_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("parent_id <> child_id", name=op.f("ck_job_dependencies_not_itself")),
        sa.ForeignKeyConstraint(
            ["child_id"],
            ["job_statuses.id"],
            name=op.f("fk_job_dependencies_child_id_job_statuses"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["job_statuses.id"],
            name=op.f("fk_job_dependencies_parent_id_job_statuses"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("parent_id", "child_id", name=op.f("pk_job_dependencies")),
    )
    op.create_index(op.f("ix_job_dependencies_child_id"), "job_dependencies", ["child_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_job_dependencies_child_id"), table_name="job_dependencies")
    op.drop_table("job_dependencies")
    op.drop_table("job_attempts")
    op.drop_table("schedule_ticks")
    op.drop_index(op.f("ix_job_statuses_status_id"), table_name="job_statuses")
    op.drop_index(
        "ix_job_statuses_unpushed",
        table_name="job_statuses",
        postgresql_where=sa.text("status = 'queued' AND held_by IS NULL AND pushed_at IS NULL"),
    )
    op.drop_index(
        "ix_job_statuses_queued",
        table_name="job_statuses",
        postgresql_where=sa.text("status = 'queued' AND held_by IS NULL"),
    )
    op.drop_index(op.f("ix_job_statuses_queue_id"), table_name="job_statuses")
    op.drop_index(op.f("ix_job_statuses_job_type_id"), table_name="job_statuses")
    op.drop_index(
        "ix_job_statuses_finished", table_name="job_statuses", postgresql_where=sa.text("finished_at IS NOT NULL")
    )
    op.drop_index("ix_job_statuses_due", table_name="job_statuses", postgresql_where=sa.text("status = 'scheduled'"))
    op.drop_table("job_statuses")
    op.drop_table("sweeps")
    op.drop_table("schedules")
