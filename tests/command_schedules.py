"""Schedules that the command line is tried on; neither fires by itself while a test lasts, but for one night hour."""

from jobledger import Tick, schedule
from sample_jobs import Echo


@schedule(every="1h", name="hourly")
def hourly(tick: Tick) -> None:
    Echo.dispatch(hour=tick.logical_time.isoformat())


schedule("30 2 * * mon-fri", tz="Europe/Prague", name="nightly in Prague", payload={"from": "the schedule"})(Echo)
