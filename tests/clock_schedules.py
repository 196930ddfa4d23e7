"""The schedule of the schedulers that are killed: once a second, and nothing may be missing."""

from jobledger import Tick, schedule
from sample_jobs import Effect


@schedule(every="1s", name="every second", catch_up="all")
def every_second(tick: Tick) -> None:
    Effect.dispatch(note=tick.logical_time.isoformat())
