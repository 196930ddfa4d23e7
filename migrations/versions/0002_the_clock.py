"""The clock: definitions of schedules as data, pauses, ticks that wait, and who the schedulers are.

The previous code goes on while this runs and afterwards: every new column has a default or may be null, and what it
inserts (a fired tick, a schedule without a definition) keeps its meaning.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TICK_CHECKS = {
    "kind_known": "kind IN ('backfill', 'manual', 'scheduled')",
    "outcome_known": "outcome IN ('failed', 'fired', 'skipped', 'waiting')",
    "fired_has_time": "(outcome = 'fired') = (fired_at IS NOT NULL)",
    "unfired_has_reason": "outcome NOT IN ('skipped', 'failed') OR reason IS NOT NULL",
}
SCHEDULE_CHECKS = {
    "definition_with_fingerprint": "(definition IS NULL) = (fingerprint IS NULL)",
    "error_with_time": "(error IS NULL) = (failed_at IS NULL)",
    "pause_has_person": (
        "CASE WHEN paused_at IS NULL THEN paused_until IS NULL AND paused_by IS NULL AND pause_reason IS NULL"
        " ELSE paused_by IS NOT NULL END"
    ),
}
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "schedulers",
        sa.Column("name", sa.Text(), nullable=False, comment="host:pid"),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedulers")),
    )
    for column in (
        sa.Column(
            "definition",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            comment="What decides; null if older code wrote the row",
        ),
        sa.Column("fingerprint", sa.Text(), comment="Of the definition"),
        sa.Column(
            "known_fingerprints",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
            comment="Of all definitions so far",
        ),
        sa.Column("decided_until", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("removed_at", MOMENT),
        sa.Column("paused_at", MOMENT),
        sa.Column("paused_until", MOMENT),
        sa.Column("paused_by", sa.Text()),
        sa.Column("pause_reason", sa.Text()),
        sa.Column("error", sa.Text(), comment="Why its last firing failed; null after one that did not"),
        sa.Column("failed_at", MOMENT),
    ):
        op.add_column("schedules", column)
    for column in (
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), server_default=sa.text("'scheduled'"), nullable=False),
        sa.Column("outcome", sa.Text(), server_default=sa.text("'fired'"), nullable=False),
        sa.Column("previous_at", MOMENT),
        sa.Column("timezone", sa.Text(), server_default=sa.text("'UTC'"), nullable=False),
        sa.Column("requested_by", sa.Text(), comment="Who asked for a manual tick or a backfill"),
        sa.Column("reason", sa.Text(), comment="Why it was skipped or failed"),
        sa.Column("errors", sa.Integer(), server_default=sa.text("0"), nullable=False),
    ):
        op.add_column("schedule_ticks", column)
    op.alter_column("schedule_ticks", "fired_at", nullable=True)
    op.alter_column("schedule_ticks", "scheduler", nullable=True)
    for name, condition in SCHEDULE_CHECKS.items():
        op.create_check_constraint(op.f(f"ck_schedules_{name}"), "schedules", condition)
    for name, condition in TICK_CHECKS.items():  # validated by the next revision, which locks out nobody
        op.create_check_constraint(
            op.f(f"ck_schedule_ticks_{name}"), "schedule_ticks", condition, postgresql_not_valid=True
        )


def downgrade() -> None:
    for name in TICK_CHECKS:
        op.drop_constraint(op.f(f"ck_schedule_ticks_{name}"), "schedule_ticks", type_="check")
    for name in SCHEDULE_CHECKS:
        op.drop_constraint(op.f(f"ck_schedules_{name}"), "schedules", type_="check")
    op.execute("DELETE FROM schedule_ticks WHERE outcome <> 'fired'")
    op.execute("UPDATE schedule_ticks SET scheduler = '' WHERE scheduler IS NULL")
    op.alter_column("schedule_ticks", "scheduler", nullable=False)
    op.alter_column("schedule_ticks", "fired_at", nullable=False)
    for name in ("errors", "reason", "requested_by", "timezone", "previous_at", "outcome", "kind", "created_at"):
        op.drop_column("schedule_ticks", name)
    for name in (
        "failed_at",
        "error",
        "pause_reason",
        "paused_by",
        "paused_until",
        "paused_at",
        "removed_at",
        "seen_at",
        "decided_until",
        "known_fingerprints",
        "fingerprint",
        "definition",
    ):
        op.drop_column("schedules", name)
    op.drop_table("schedulers")
