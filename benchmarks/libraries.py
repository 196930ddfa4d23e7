"""A configuration for bare workers that imports what jobledger stands on, and nothing of jobledger.

A work-horse's fork and end cost by the pages of its parent; this shows how much of the difference is that.
"""

import gc

import psycopg2  # noqa: F401
import pydantic_settings  # noqa: F401
import sqlalchemy.dialects.postgresql
import sqlalchemy.orm  # noqa: F401
import structlog  # noqa: F401

gc.collect()
gc.freeze()
