"""Schedules: their definitions, and firing each fire time once.

from jobledger.schedules import schedule

@schedule("0 2 * * mon-fri", tz="Europe/Prague")
def nightly(tick): ...
"""

from jobledger.schedules.book import Schedule, ScheduleBook, schedule, scheduler

__all__ = ["Schedule", "ScheduleBook", "schedule", "scheduler"]
