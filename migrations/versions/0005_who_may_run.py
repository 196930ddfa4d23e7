"""Who may be dispatched, and when: idempotency keys, windows of unique jobs; and more ways for an attempt to end.

The previous code goes on: what it inserts has none of these.
"""

import sqlalchemy as sa
from alembic import op

from jobledger.ledger.migrate import replace_check

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

OLD_OUTCOMES = "'completed', 'crashed', 'error', 'handed_back', 'lost', 'timeout', 'unknown_type'"
NEW_OUTCOMES = (
    "'canceled', 'completed', 'crashed', 'error', 'gave_up', 'handed_back', 'lost', 'snoozed', 'timeout',"
    " 'unknown_type'"
)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _check_outcomes(NEW_OUTCOMES)
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False, comment="Of the job's type and payload"),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"])
    op.create_table(
        "unique_windows",
        sa.Column("unique_key", sa.Text(), nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("unique_key", name=op.f("pk_unique_windows")),
    )
    op.create_index(op.f("ix_unique_windows_until"), "unique_windows", ["until"])


def downgrade() -> None:
    op.execute("UPDATE job_attempts SET outcome = 'error' WHERE outcome IN ('canceled', 'gave_up')")
    op.execute("UPDATE job_attempts SET outcome = 'lost' WHERE outcome = 'snoozed'")
    _check_outcomes(OLD_OUTCOMES)
    op.drop_table("unique_windows")
    op.drop_table("idempotency_keys")


def _check_outcomes(words: str) -> None:
    replace_check("job_attempts", "ck_job_attempts_outcome_known", f"outcome IN ({words})")
