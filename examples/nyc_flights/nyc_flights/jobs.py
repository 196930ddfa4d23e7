"""The example's own jobs. The others, TruncateTable and LoadCsv, ship with jobledger."""

from typing import Any

from jobledger import BaseJob, Retry
from nyc_flights.report import flight_report
from nyc_flights.schema import DDL


class CreateTables(BaseJob):
    """Create the tables that are missing."""

    title = "Create the tables"
    queue = "high"
    retry = Retry(3)

    def _perform(self) -> str:
        self.session.connection().exec_driver_sql(DDL)
        return "The tables are there"


class FlightReport(BaseJob):
    """Read the imported tables; what it finds is its result."""

    title = "Report on the flights"
    api_dispatchable = True

    def _perform(self) -> dict[str, Any]:
        report = flight_report(self.session.connection())
        self.log.info("reported", flights=report["flights"], airlines=report["airlines"])
        return report
