"""Limits and rates: which jobs have some, and who holds the slots.

The previous code goes on, and starts jobs without asking: limits hold once every worker is new.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "job_limits",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False, comment="Running at once, or starts within the window"),
        sa.Column("window_seconds", sa.Double(), comment="Of a rate"),
        sa.Column(
            "has_slot",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="It is counted in limit_keys.taken: it runs (limit), or may start and has not yet (both)",
        ),
        sa.PrimaryKeyConstraint("job_id", "kind", name=op.f("pk_job_limits")),
        sa.CheckConstraint("kind IN ('limit', 'rate')", name=op.f("ck_job_limits_kind_known")),
        sa.CheckConstraint(
            "(kind = 'rate') = (window_seconds IS NOT NULL)", name=op.f("ck_job_limits_rate_has_window")
        ),
        sa.CheckConstraint("most >= 1 AND window_seconds > 0", name=op.f("ck_job_limits_positive")),
        sa.CheckConstraint("char_length(key) BETWEEN 1 AND 255", name=op.f("ck_job_limits_key_length")),
    )
    op.create_index("ix_job_limits_slots", "job_limits", ["kind", "key"], postgresql_where=sa.text("has_slot"))
    op.create_table(
        "limit_keys",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("taken", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "starts",
            pg.ARRAY(MOMENT),
            server_default=sa.text("'{}'::timestamptz[]"),
            nullable=False,
            comment="Of a rate: those within its window, oldest first",
        ),
        sa.Column("window_seconds", sa.Double(), comment="The longest of the jobs of a rate"),
        sa.Column("used_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", name=op.f("pk_limit_keys")),
        sa.CheckConstraint("kind IN ('limit', 'rate')", name=op.f("ck_limit_keys_kind_known")),
        sa.CheckConstraint("taken >= 0", name=op.f("ck_limit_keys_taken_not_negative")),
    )
    op.create_index("ix_limit_keys_taken", "limit_keys", ["kind", "key"], postgresql_where=sa.text("taken > 0"))
    op.create_index(op.f("ix_limit_keys_used_at"), "limit_keys", ["used_at"])


def downgrade() -> None:
    op.execute(
        "UPDATE job_statuses SET held_by = NULL, pushed_at = NULL"
        " WHERE (held_by LIKE 'limit:%' OR held_by LIKE 'rate:%') AND status = 'queued'"
    )
    op.drop_table("limit_keys")
    op.drop_table("job_limits")
