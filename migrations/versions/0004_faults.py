"""What repair remembers: which Redis it knows, and wake-ups that were lost; and one more way for an attempt to end.

The previous code goes on: it does not know the new tables, and never reads an outcome that it does not know unless a
worker of the new code was stopped while it ran a job.
"""

import sqlalchemy as sa
from alembic import op

from jobledger.ledger.migrate import replace_check

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

OLD_OUTCOMES = "'completed', 'crashed', 'error', 'lost', 'timeout', 'unknown_type'"
NEW_OUTCOMES = "'completed', 'crashed', 'error', 'handed_back', 'lost', 'timeout', 'unknown_type'"
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _check_outcomes(NEW_OUTCOMES)
    op.create_table(
        "lost_wakes",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column(
            "attempt", sa.Integer(), nullable=False, comment="Claims before the losses; a claim starts them anew"
        ),
        sa.Column("losses", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lost_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_lost_wakes")),
    )
    op.create_index(op.f("ix_lost_wakes_lost_at"), "lost_wakes", ["lost_at"])
    op.create_table(
        "redis_epoch",
        sa.Column("only_row", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False, comment="Mark left in Redis, and the run of its server"),
        sa.Column("since", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("only_row", name=op.f("pk_redis_epoch")),
        sa.CheckConstraint("only_row", name=op.f("ck_redis_epoch_only_row")),
    )


def downgrade() -> None:
    op.execute("UPDATE job_attempts SET outcome = 'lost' WHERE outcome = 'handed_back'")
    _check_outcomes(OLD_OUTCOMES)
    op.drop_table("redis_epoch")
    op.drop_table("lost_wakes")


def _check_outcomes(words: str) -> None:
    replace_check("job_attempts", "ck_job_attempts_outcome_known", f"outcome IN ({words})")
