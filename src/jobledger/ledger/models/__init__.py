"""The tables, with names for every constraint and CHECKs that refuse impossible rows.

Only `ledger` and the migrations see these modules. A test holds them equal to what the migrations build.
"""

from jobledger.ledger.models import control, schedules
from jobledger.ledger.models.columns import metadata
from jobledger.ledger.models.jobs import job_attempts, job_statuses

__all__ = ["control", "job_attempts", "job_statuses", "metadata", "schedules"]
