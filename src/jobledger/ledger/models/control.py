"""Keys, windows, requests, pauses and limits; and the state that repair keeps between its sweeps.

No foreign keys to jobs: adding one would wait for every transaction that has written to `job_statuses`, such as a
long job's; and a key outlives its job.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobledger.domain.status import PauseKind, SlotKind
from jobledger.ledger.models.columns import count, metadata, moment, words

idempotency_keys: Final = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("payload_hash", sa.Text, nullable=False, comment="Of the job's type and payload"),
    sa.Column("job_id", sa.Uuid, nullable=False),
    moment("created_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("scope", "key"),
    # Prune.
    sa.Index(None, "created_at"),
)

unique_windows: Final = sa.Table(
    "unique_windows",
    metadata,
    sa.Column("unique_key", sa.Text, nullable=False),
    moment("until", nullable=False),
    sa.Column("job_id", sa.Uuid, nullable=False),
    sa.PrimaryKeyConstraint("unique_key"),
    # Prune.
    sa.Index(None, "until"),
)

cancel_requests: Final = sa.Table(
    "cancel_requests",
    metadata,
    sa.Column("job_id", sa.Uuid, nullable=False),
    moment("requested_at", nullable=False),
    sa.Column("reason", sa.Text, nullable=False, comment="Who and why; the reason of the job when it is canceled"),
    sa.PrimaryKeyConstraint("job_id"),
    # Prune.
    sa.Index(None, "requested_at"),
)

pauses: Final = sa.Table(
    "pauses",
    metadata,
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False, comment="Of the queue, or the job type"),
    moment("paused_at", nullable=False, now=True),
    sa.Column("paused_by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.PrimaryKeyConstraint("kind", "name"),
    sa.CheckConstraint(f"kind IN ({words(PauseKind)})", name="kind_known"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name_length"),
)

job_limits: Final = sa.Table(
    "job_limits",
    metadata,
    sa.Column("job_id", sa.Uuid, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("most", sa.Integer, nullable=False, comment="Running at once, or starts within the window"),
    sa.Column("window_seconds", sa.Double, comment="Of a rate"),
    sa.Column(
        "has_slot",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="It is counted in limit_keys.taken: it runs (limit), or may start and has not yet (both)",
    ),
    sa.PrimaryKeyConstraint("job_id", "kind"),
    sa.CheckConstraint(f"kind IN ({words(SlotKind)})", name="kind_known"),
    sa.CheckConstraint("(kind = 'rate') = (window_seconds IS NOT NULL)", name="rate_has_window"),
    sa.CheckConstraint("most >= 1 AND window_seconds > 0", name="positive"),
    sa.CheckConstraint("char_length(key) BETWEEN 1 AND 255", name="key_length"),
    # Leaked slots.
    sa.Index("ix_job_limits_slots", "kind", "key", postgresql_where=sa.text("has_slot")),
)

limit_keys: Final = sa.Table(
    "limit_keys",
    metadata,
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    count("taken"),
    sa.Column(
        "starts",
        pg.ARRAY(sa.DateTime(timezone=True)),
        nullable=False,
        server_default=sa.text("'{}'::timestamptz[]"),
        comment="Of a rate: those within its window, oldest first",
    ),
    sa.Column("window_seconds", sa.Double, comment="The longest of the jobs of a rate"),
    moment("used_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("kind", "key"),
    sa.CheckConstraint(f"kind IN ({words(SlotKind)})", name="kind_known"),
    sa.CheckConstraint("taken >= 0", name="taken_not_negative"),
    # Wrong counts.
    sa.Index("ix_limit_keys_taken", "kind", "key", postgresql_where=sa.text("taken > 0")),
    # Prune.
    sa.Index(None, "used_at"),
)


lost_wakes: Final = sa.Table(
    "lost_wakes",
    metadata,
    # No foreign key: adding it would wait for every transaction that has written to job_statuses, such as a long job's.
    sa.Column("job_id", sa.Uuid, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, comment="Claims before the losses; a claim starts them anew"),
    count("losses"),
    moment("lost_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("job_id"),
    # Prune.
    sa.Index(None, "lost_at"),
)

job_propagations: Final = sa.Table(
    "job_propagations",
    metadata,
    sa.Column("parent_id", sa.Uuid, nullable=False, comment="A job that has ended, and children that were not told"),
    sa.Column("first_child_id", sa.Uuid, nullable=False),
    sa.Column("last_child_id", sa.Uuid, nullable=False, comment="Later ones were dispatched after the end"),
    moment("due_at", nullable=False, now=True),
    sa.PrimaryKeyConstraint("parent_id", "first_child_id"),
    # The longest due first.
    sa.Index(None, "due_at"),
)

job_ledger: Final = sa.Table(
    "job_ledger",
    metadata,
    sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column(
        "id",
        sa.Uuid,
        nullable=False,
        server_default=sa.text("gen_random_uuid()"),
        comment="With the place of the database it names the ledger in Redis",
    ),
    sa.PrimaryKeyConstraint("only_row"),
    sa.CheckConstraint("only_row", name="only_row"),
)

redis_epoch: Final = sa.Table(
    "redis_epoch",
    metadata,
    sa.Column("only_row", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("epoch", sa.Text, nullable=False, comment="Mark left in Redis, and the run of its server"),
    moment("since", nullable=False, now=True),
    sa.PrimaryKeyConstraint("only_row"),
    sa.CheckConstraint("only_row", name="only_row"),
)

sweeps: Final = sa.Table(
    "sweeps",
    metadata,
    sa.Column("name", sa.Text, nullable=False),
    moment("swept_at", nullable=False, now=True),
    moment("resumed_at", nullable=False, now=True),
    sa.Column("swept_by", sa.Text, nullable=False, comment="host:pid of the process that swept last"),
    sa.Column("found", pg.JSONB, comment="By the count of all places: how many are where"),
    sa.PrimaryKeyConstraint("name"),
)
