"""The customer's own code, as the customer's document has it; only the imports are ours to say."""

from jobledger import BaseJob
from jobledger.jobs import TruncateTable
from jobledger.schedules import scheduler


class DataImportJob(BaseJob):
    def _perform(self):  # type: ignore[no-untyped-def]
        return self.payload


@scheduler.scheduled_job('cron', day_of_week='mon-fri', hour=1)  # fmt: skip
def nightly_data_import():  # type: ignore[no-untyped-def]
    DataImportJob.dispatch(source="external_api", target="data_warehouse", queue="etl")


@scheduler.scheduled_job('cron', hour=2)  # fmt: skip
def nightly_data_update():  # type: ignore[no-untyped-def]
    TruncateTable.dispatch(schema="public", table_name="daily_stats", queue="low")
