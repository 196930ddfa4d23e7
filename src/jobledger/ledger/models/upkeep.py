"""What repair remembers between its looks."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from jobledger.ledger.models.columns import count, metadata, moment

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
