"""The tables, their one writer of statuses, and the reads."""

from typing import Final

from jobledger.ledger.models.columns import metadata

OWN_TABLES: Final = (*sorted(metadata.tables), "alembic_version")
"""Names of the tables that no job may load or empty."""
