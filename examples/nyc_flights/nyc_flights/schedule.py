"""When the import runs by itself."""

from jobledger.schedules import scheduler
from nyc_flights.pipeline import dispatch_import


@scheduler.scheduled_job("cron", hour=2, timezone="America/New_York")
def nightly_import() -> None:
    """Every night at two. All of its jobs are dispatched in the transaction of the tick: all or none, and once."""
    dispatch_import()
