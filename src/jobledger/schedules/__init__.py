"""What should fire when, and firing it once. `scheduler` is where schedules are defined:

from jobledger.schedules import scheduler

@scheduler.scheduled_job("cron", hour=2)
def nightly(): ...
"""

from jobledger.schedules.schedule import Schedule, ScheduleBook, scheduler

__all__ = ["Schedule", "ScheduleBook", "scheduler"]
