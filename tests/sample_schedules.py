"""Schedules that the tests run in real scheduler processes."""

from jobledger.schedules import scheduler
from sample_jobs import Echo, Effect


@scheduler.scheduled_job("interval", seconds=1, id="every second")
def every_second() -> None:
    Effect.dispatch(note="tick")


@scheduler.scheduled_job("interval", seconds=1, id="raises")
def raises() -> None:
    Echo.dispatch(never="seen")
    raise RuntimeError("as asked")
