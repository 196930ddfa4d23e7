"""Requests to cancel what runs, pauses, and what becomes of a job when one that it waits for does not complete.

Every step may be done again, and locks nobody out for long: the index is built while jobs run, and waits for the
transactions that were open when it began, such as those of long jobs; so does the change of `job_dependencies`, for
those that have dispatched with `after=`.

The previous code goes on: what it inserts is canceled with its parents. It ends nothing on request, and starts what is
paused.
"""

import sqlalchemy as sa
from alembic import op

from jobledger.ledger.migrate import build_index, drop_index, replace_check

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
HELD = "ix_job_statuses_held"
CHECK = "ck_job_dependencies_on_parent_failure_known"


def upgrade() -> None:
    build_index(HELD, "job_statuses (held_by, priority, queued_at, id) WHERE held_by IS NOT NULL")
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE job_dependencies"
            " ADD COLUMN IF NOT EXISTS on_parent_failure text DEFAULT 'cancel' NOT NULL,"
            " ADD COLUMN IF NOT EXISTS is_over boolean DEFAULT false NOT NULL"
        )
        op.execute(
            "COMMENT ON COLUMN job_dependencies.is_over IS 'The parent did not complete, and the child runs all the same'"
        )
    replace_check("job_dependencies", CHECK, "on_parent_failure IN ('cancel', 'hold', 'run')")
    op.create_table(
        "cancel_requests",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("requested_at", MOMENT, nullable=False),
        sa.Column(
            "reason", sa.Text(), nullable=False, comment="Who and why; the reason of the job when it is canceled"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_cancel_requests")),
    )
    op.create_index(op.f("ix_cancel_requests_requested_at"), "cancel_requests", ["requested_at"])
    op.create_table(
        "pauses",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="Of the queue, or the job type"),
        sa.Column("paused_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("paused_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_pauses")),
        sa.CheckConstraint("kind IN ('queue', 'type')", name=op.f("ck_pauses_kind_known")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name=op.f("ck_pauses_name_length")),
    )


def downgrade() -> None:
    op.execute(
        "UPDATE job_statuses SET held_by = NULL, pushed_at = NULL WHERE held_by LIKE 'pause:%' AND status = 'queued'"
    )
    op.drop_table("pauses")
    op.drop_table("cancel_requests")
    op.drop_constraint(op.f(CHECK), "job_dependencies")
    op.drop_column("job_dependencies", "is_over")
    op.drop_column("job_dependencies", "on_parent_failure")
    drop_index(HELD)
