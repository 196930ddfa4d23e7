"""Attempts of shared processes: the start of their session, the token of their delivery, and whether they are isolated.

The previous code goes on: it writes attempts without the new columns, all of processes that run one job. Its reaper
identifies a session by its pid, if it began before the attempt, as before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "job_attempts",
        sa.Column(
            "isolated",
            sa.Boolean,
            nullable=False,
            server_default=sa.true(),
            comment="The process ran this attempt alone: its death is the job's",
        ),
    )
    op.add_column("job_attempts", sa.Column("token", sa.Uuid, comment="Of the delivery that claimed"))
    op.add_column("job_attempts", sa.Column("backend_started_at", sa.DateTime(timezone=True)))
    op.alter_column("job_attempts", "backend_pid", nullable=True)


def downgrade() -> None:
    # A pid that no session can have: no session is ended for attempts without one.
    op.execute("UPDATE job_attempts SET backend_pid = 0 WHERE backend_pid IS NULL")
    op.alter_column("job_attempts", "backend_pid", nullable=False)
    op.drop_column("job_attempts", "backend_started_at")
    op.drop_column("job_attempts", "token")
    op.drop_column("job_attempts", "isolated")
