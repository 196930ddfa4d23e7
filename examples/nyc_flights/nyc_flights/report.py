"""The report: three questions in SQL, and their answers as JSON and as text."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_TOTALS: Final = sa.text("SELECT count(*) AS flights, count(DISTINCT carrier) AS airlines FROM staging.flights")

_BY_CARRIER: Final = sa.text("""
SELECT airlines.name AS airline,
       count(*) AS flights,
       count(dep_time) AS "left",
       round(avg(dep_delay), 1)::float AS "mean delay"
  FROM staging.flights JOIN staging.airlines USING (carrier)
 GROUP BY airlines.name
 ORDER BY "mean delay" DESC, airline
""")

_WORST_ROUTES: Final = sa.text("""
SELECT origin || ' to ' || dest AS route,
       coalesce(airports.name, '(not in the list)') AS destination,
       count(dep_time) AS "left",
       round(avg(dep_delay), 1)::float AS "mean delay"
  FROM staging.flights LEFT JOIN staging.airports ON faa = dest
 GROUP BY origin, dest, airports.name
HAVING count(dep_time) >= 50
 ORDER BY "mean delay" DESC, route
 LIMIT 10
""")

_BY_WIND: Final = sa.text("""
SELECT CASE WHEN wind_speed IS NULL THEN 'not measured'
            WHEN wind_speed >= 30 THEN '30 or more'
            ELSE format('%s to %s', 5 * floor(wind_speed / 5), 5 * floor(wind_speed / 5) + 5)
       END AS "wind (mph)",
       count(dep_time) AS "left",
       round(avg(dep_delay), 1)::float AS "mean delay"
  FROM staging.flights LEFT JOIN staging.weather USING (origin, time_hour)
 GROUP BY 1
 ORDER BY min(wind_speed) NULLS LAST
""")


@dataclass(frozen=True, slots=True)
class Table:
    """An answer."""

    title: str
    columns: list[str]
    rows: list[list[Any]]

    def text(self) -> str:
        """The table for people: numbers to the right, all else to the left."""
        cells = [self.columns, *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[number]) for row in cells) for number in range(len(self.columns))]
        numeric = [
            all(isinstance(row[number], int | float | None) for row in self.rows) for number in range(len(widths))
        ]
        lines = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ).rstrip()
            for row in cells
        ]
        return "\n".join([self.title, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def flight_report(connection: Connection) -> dict[str, Any]:
    """Ask all questions; JSON with the numbers, the tables, and all of it as text."""
    totals = connection.execute(_TOTALS).one()
    tables = [
        _ask(connection, "Departure delay by airline, in minutes", _BY_CARRIER),
        _ask(
            connection, "The ten routes with the longest mean delay (of those with 50 flights or more)", _WORST_ROUTES
        ),
        _ask(connection, "Departure delay by wind at the hour of departure", _BY_WIND),
    ]
    headline = f"{totals.flights:,} flights, {totals.airlines} airlines: departures from New York in January 2013"
    return {
        "flights": totals.flights,
        "airlines": totals.airlines,
        "tables": [asdict(table) for table in tables],
        "text": "\n\n".join([headline, *(table.text() for table in tables)]),
    }


def _ask(connection: Connection, title: str, query: sa.TextClause) -> Table:
    answer = connection.execute(query)
    return Table(title, list(answer.keys()), [list(row) for row in answer])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
