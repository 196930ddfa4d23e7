"""The import: empty the staging tables, load each from its file, and report when all are loaded."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from jobledger import JobHandle
from jobledger.jobs import LoadCsv, TruncateTable
from nyc_flights.jobs import FlightReport
from nyc_flights.schema import SCHEMA


@dataclass(frozen=True, slots=True)
class Source:
    """A file, the table that it goes to, and the queue that takes it there."""

    table: str
    key: tuple[str, ...]
    queue: str


SOURCES: Final = (
    Source("flights", ("carrier", "flight", "origin", "time_hour"), "etl"),
    Source("weather", ("origin", "time_hour"), "etl"),
    Source("planes", ("tailnum",), "low"),
    Source("airports", ("faa",), "low"),
    Source("airlines", ("carrier",), "low"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A dispatched job, and how people call it."""

    title: str
    queue: str
    job: JobHandle


def dispatch_import(session: Session | None = None) -> list[Step]:
    """Dispatch all jobs of one import; the report is the last of them.

    Args:
        session: in this transaction, so that either all are dispatched or none.
    """
    empties, loads = [], []
    for source in SOURCES:
        table = f"{SCHEMA}.{source.table}"
        empty = TruncateTable.dispatch(schema=SCHEMA, table_name=source.table, queue="low", session=session)
        load = LoadCsv.dispatch(
            path=f"{source.table}.csv.gz",
            table=table,
            key=source.key,
            null_values=["NA"],
            queue=source.queue,
            after=empty,
            session=session,
        )
        empties.append(Step(f"Truncate {table}", "low", empty))
        loads.append(Step(f"Load {source.table}.csv.gz", source.queue, load))
    report = FlightReport.dispatch(after=[load.job for load in loads], session=session)
    return [*empties, *loads, Step("Report on the flights", "default", report)]
