"""Indexes of unique and of expiring jobs, built while jobs run.

Nothing here locks out writers, and every step may be done again: a build that was interrupted leaves an invalid index,
which the next try drops first. Building waits for the transactions that were open when it began, such as those of
long jobs.
"""

from jobledger.ledger.migrate import build_index, drop_index

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UNIQUE = "uq_job_statuses_unique_key"
EXPIRING = "ix_job_statuses_expiring"


def upgrade() -> None:
    build_index(UNIQUE, "job_statuses (unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL", unique=True)
    build_index(
        EXPIRING,
        "job_statuses (expires_at) WHERE expires_at IS NOT NULL AND attempt = 0 AND finished_at IS NULL",
    )


def downgrade() -> None:
    drop_index(EXPIRING)
    drop_index(UNIQUE)
