"""`scheduler`."""

import click

from jobledger.cli.configuration import connect
from jobledger.maintenance.ownership import take_queues
from jobledger.registry import load_job_modules
from jobledger.scheduler.process import SchedulerProcess
from jobledger.schedules import scheduler as book


@click.command()
def scheduler() -> None:
    """Run the clock: schedules, retries, repair. Any number may run."""
    connections = connect("jobledger-scheduler", is_service=True)
    load_job_modules(connections.settings.job_modules)
    take_queues(connections)
    SchedulerProcess(connections, book).run_until_signal()
