"""Indexes of the clock, built while jobs run, and checks that the revision before left unvalidated.

Nothing here locks out writers, and every step may be done again: a build that was interrupted leaves an invalid index,
which the next try drops first. Building waits for the transactions that were open when it began, such as those of
long jobs.
"""

from alembic import op

from jobledger.ledger.migrate import build_index, drop_index

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_job_statuses_unfinished_of_schedule": (
        "job_statuses (schedule_id) WHERE schedule_id IS NOT NULL AND finished_at IS NULL"
    ),
    "ix_schedule_ticks_waiting": "schedule_ticks (schedule_id, fire_at) WHERE outcome = 'waiting'",
    "ix_schedule_ticks_created_at": "schedule_ticks (created_at)",
}
TICK_CHECKS = ("kind_known", "outcome_known", "fired_has_time", "unfired_has_reason")


def upgrade() -> None:
    for name, definition in INDEXES.items():
        build_index(name, definition)
    with op.get_context().autocommit_block():
        for name in TICK_CHECKS:
            op.execute(f"ALTER TABLE schedule_ticks VALIDATE CONSTRAINT ck_schedule_ticks_{name}")


def downgrade() -> None:
    for name in INDEXES:
        drop_index(name)
