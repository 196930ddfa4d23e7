"""The schedule of the chaos runs that kill schedulers: once a second, and nothing may be missing."""

from chaos_jobs import TickSeen
from jobledger import Tick, schedule


@schedule(every="1s", name="every second", catch_up="all")
def every_second(tick: Tick) -> None:
    TickSeen.dispatch(moment=tick.logical_time.isoformat())
