"""What a sweep has found: the last count of where all jobs are, which health checks show.

The previous code goes on: it does not know the column.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("found", pg.JSONB(), comment="By the count of all places: how many are where"))


def downgrade() -> None:
    op.execute("DELETE FROM sweeps WHERE name = 'count'")
    op.drop_column("sweeps", "found")
