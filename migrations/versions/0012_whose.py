"""The ledger has an id, which names it in Redis.

The previous code goes on: it names nothing in Redis, and what has no name counts as the ledger's own.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_ledger",
        sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column(
            "id",
            sa.Uuid,
            nullable=False,
            server_default=sa.text("gen_random_uuid()"),
            comment="With the place of the database it names the ledger in Redis",
        ),
        sa.PrimaryKeyConstraint("only_row", name=op.f("pk_job_ledger")),
        sa.CheckConstraint("only_row", name=op.f("ck_job_ledger_only_row")),
    )
    op.execute("INSERT INTO job_ledger DEFAULT VALUES")


def downgrade() -> None:
    op.drop_table("job_ledger")
