"""An end is written in bounded time: children that it did not tell are noted, and told later, in parts.

The previous code goes on: it tells all children in the transaction of an end, and notes none. `is_over` is also set for
parents that completed; the previous code does not read it for those.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BEFORE = "The parent did not complete, and the child runs all the same"
NOW = "The child waits for the parent no longer: that completed, or the child runs all the same"


def upgrade() -> None:
    op.create_table(
        "job_propagations",
        sa.Column(
            "parent_id", sa.Uuid(), nullable=False, comment="A job that has ended, and children that were not told"
        ),
        sa.Column("first_child_id", sa.Uuid(), nullable=False),
        sa.Column("last_child_id", sa.Uuid(), nullable=False, comment="Later ones were dispatched after the end"),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("parent_id", "first_child_id", name=op.f("pk_job_propagations")),
    )
    op.create_index(op.f("ix_job_propagations_due_at"), "job_propagations", ["due_at"])
    op.alter_column("job_dependencies", "is_over", comment=NOW, existing_comment=BEFORE)


def downgrade() -> None:
    # The chore for stuck children finds the children that were not told yet.
    op.alter_column("job_dependencies", "is_over", comment=BEFORE, existing_comment=NOW)
    op.drop_table("job_propagations")
