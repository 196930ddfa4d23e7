"""The job that loads a CSV file into a table."""

from dataclasses import dataclass

import sqlalchemy as sa

from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.connections.default import default_connections
from jobledger.domain.retry import Retry
from jobledger.errors import JobRefused
from jobledger.etl.bad_file import BadFile
from jobledger.etl.csv_rows import CsvRows
from jobledger.etl.data_file import locate, unpacked
from jobledger.etl.find_bad_rows import bad_rows, check_keys_given, is_about_data
from jobledger.etl.staging import Staging, fit
from jobledger.etl.tables import TableName, check_is_key, check_is_table, check_listed, columns
from jobledger.job.definition import BaseJob

SETTING = "JOBLEDGER_LOADABLE_TABLES"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of `LoadCsv`. Rows that were neither inserted nor updated were already there, all of them key."""

    table: str
    rows_read: int
    rows_inserted: int
    rows_updated: int


class LoadCsv(BaseJob):
    """Load a CSV file from `JOBLEDGER_DATA_DIR` into a table that `JOBLEDGER_LOADABLE_TABLES` lists: all or nothing.

    The file is UTF-8, plain, gzip (`.gz`) or the one member of a zip (`.zip`); its first line names columns of the
    table. Its parameters:

        path: path of the file, below the data directory.
        table: "schema.table", or "table" for a table in `public`.
        key: columns with a unique constraint; rows whose key exists are updated. Without a key all rows are inserted,
            so that a second load of the same file duplicates them, or fails.
        null_values: field values that mean null, quoted or not, for example ["NA", ""].
        delimiter: one character.

    The result counts the rows. Rows that cannot be loaded fail the job with `BadRows`, which names the first ten.
    """

    title = "Load {path} into {table}"
    timeout = "1h"
    api_dispatchable = True
    retry = Retry(3, give_up_on=(JobRefused, BadFile))

    @classmethod
    def check_payload(
        cls, path: str, table: str, key: tuple[str, ...], null_values: tuple[str, ...], delimiter: str
    ) -> None:
        """Refuse a payload that cannot be loaded, without reading the file.

        Raises:
            JobRefused: the file is not in the data directory; the table is not listed, does not exist, is no table
                or is one of the ledger's; the key or the delimiter is invalid.
            LedgerUnavailable: Postgres is away.
        """
        if len(delimiter) != 1 or delimiter in '"\r\n ':
            raise JobRefused(f"delimiter={delimiter!r}: say one character that is no quote, space or line break.")
        target = _listed(table)
        locate(default_connections().settings.data_dir, path)
        with default_connections().transaction(DISPATCH_SECONDS) as connection:
            check_is_table(connection, target)
            if key:
                check_is_key(connection, target, key)

    def _perform(
        self,
        path: str,
        table: str,
        key: tuple[str, ...] = (),
        null_values: tuple[str, ...] = (),
        delimiter: str = ",",
    ) -> Loaded:
        target = _listed(table)
        file = locate(default_connections().settings.data_dir, path)
        connection = self.session.connection()
        check_is_table(connection, target)
        with unpacked(file) as source:
            rows = CsvRows(path, source, delimiter, lambda count: self.progress(count, note=f"{source.share:.0%} read"))
            staging = Staging(connection, target, fit(rows.header, columns(connection, target), key), key, null_values)
            staging.fill(rows)
        return self._move(staging, target, path, rows)

    def _move(self, staging: Staging, target: TableName, path: str, rows: CsvRows) -> Loaded:
        self.progress(rows.count, rows.count, f"writing into {target}")
        check_keys_given(staging, path)
        connection = staging.connection
        try:
            with connection.begin_nested():
                known = staging.known()
                changed = connection.execute(staging.move()).rowcount
        except sa.exc.DBAPIError as error:
            if not is_about_data(error):
                raise
            self.progress(rows.count, rows.count, "looking for the bad rows")
            raise bad_rows(staging, path, rows.last_line, error) from error
        updated = known if set(staging.names) > set(staging.key) else 0
        self.progress(rows.count, rows.count, "loaded")
        return Loaded(str(target), rows.count, changed - updated, updated)


def _listed(table: str) -> TableName:
    try:
        target = TableName.parse(table)
    except ValueError as error:
        raise JobRefused(f"table={error}") from None
    check_listed(target, default_connections().settings.loadable_tables, SETTING)
    return target
