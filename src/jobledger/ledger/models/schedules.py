"""Schedules, their fire times, and the processes that fire them."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobledger.domain.tick import TickKind, TickOutcome
from jobledger.ledger.models.columns import count, metadata, moment, words

schedules: Final = sa.Table(
    "schedules",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False, comment="The expression, as people read it"),
    sa.Column("timezone", sa.Text, nullable=False),
    moment("created_at", nullable=False, now=True),
    moment("updated_at", nullable=False, now=True),
    sa.Column("definition", pg.JSONB(none_as_null=True), comment="What decides; null if older code wrote the row"),
    sa.Column("fingerprint", sa.Text, comment="Of the definition"),
    sa.Column(
        "known_fingerprints",
        pg.ARRAY(sa.Text),
        nullable=False,
        server_default=sa.text("'{}'::text[]"),
        comment="Of all definitions so far",
    ),
    moment("decided_until", nullable=False, now=True),
    moment("seen_at", nullable=False, now=True),
    moment("removed_at"),
    moment("paused_at"),
    moment("paused_until"),
    sa.Column("paused_by", sa.Text),
    sa.Column("pause_reason", sa.Text),
    sa.Column("error", sa.Text, comment="Why its last firing failed; null after one that did not"),
    moment("failed_at"),
    sa.PrimaryKeyConstraint("id"),
    sa.UniqueConstraint("name"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name_length"),
    sa.CheckConstraint("(definition IS NULL) = (fingerprint IS NULL)", name="definition_with_fingerprint"),
    sa.CheckConstraint("(error IS NULL) = (failed_at IS NULL)", name="error_with_time"),
    sa.CheckConstraint(
        "CASE WHEN paused_at IS NULL THEN paused_until IS NULL AND paused_by IS NULL AND pause_reason IS NULL"
        " ELSE paused_by IS NOT NULL END",
        name="pause_has_person",
    ),
)

schedule_ticks: Final = sa.Table(
    "schedule_ticks",
    metadata,
    sa.Column("schedule_id", sa.Uuid, nullable=False),
    moment("fire_at", nullable=False),
    moment("fired_at", now=True),
    sa.Column("scheduler", sa.Text, comment="host:pid of the process that fired it"),
    moment("created_at", nullable=False, now=True),
    sa.Column("kind", sa.Text, nullable=False, server_default=sa.text("'scheduled'")),
    sa.Column("outcome", sa.Text, nullable=False, server_default=sa.text("'fired'")),
    moment("previous_at"),
    sa.Column("timezone", sa.Text, nullable=False, server_default=sa.text("'UTC'")),
    sa.Column("requested_by", sa.Text, comment="Who asked for a manual tick or a backfill"),
    sa.Column("reason", sa.Text, comment="Why it was skipped or failed"),
    count("errors"),
    sa.PrimaryKeyConstraint("schedule_id", "fire_at"),
    sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], ondelete="CASCADE"),
    sa.CheckConstraint(f"kind IN ({words(TickKind)})", name="kind_known"),
    sa.CheckConstraint(f"outcome IN ({words(TickOutcome)})", name="outcome_known"),
    sa.CheckConstraint("(outcome = 'fired') = (fired_at IS NOT NULL)", name="fired_has_time"),
    sa.CheckConstraint("outcome NOT IN ('skipped', 'failed') OR reason IS NOT NULL", name="unfired_has_reason"),
    sa.Index("ix_schedule_ticks_waiting", "schedule_id", "fire_at", postgresql_where=sa.text("outcome = 'waiting'")),
    # Prune.
    sa.Index(None, "created_at"),
)

schedulers: Final = sa.Table(
    "schedulers",
    metadata,
    sa.Column("name", sa.Text, nullable=False, comment="host:pid"),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    moment("started_at", nullable=False, now=True),
    moment("seen_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("name"),
)
