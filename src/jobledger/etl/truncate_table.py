"""The job that empties a table."""

import sqlalchemy as sa

from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.connections.default import default_connections
from jobledger.domain.retry import Retry
from jobledger.errors import JobRefused
from jobledger.etl.tables import TableName, check_is_table, check_listed
from jobledger.job.definition import BaseJob

SETTING = "JOBLEDGER_TRUNCATABLE_TABLES"


class TruncateTable(BaseJob):
    """Empty a table that `JOBLEDGER_TRUNCATABLE_TABLES` lists.

    The table becomes empty when the job becomes `completed`, not before. Partitions are emptied with their table.
    Tables that refer to it by a foreign key are not, so the job fails if there are any.
    """

    title = "Truncate {schema}.{table_name}"
    api_dispatchable = True
    retry = Retry(3, give_up_on=(JobRefused,))

    @classmethod
    def check_payload(cls, schema: str, table_name: str) -> None:
        """Refuse a table that is not listed, before anything is written.

        Raises:
            JobRefused: the table is not listed, does not exist, is no table, or is one of the ledger's.
            LedgerUnavailable: Postgres is away.
        """
        table = _listed(schema, table_name)
        with default_connections().transaction(DISPATCH_SECONDS) as connection:
            check_is_table(connection, table)

    def _perform(self, schema: str, table_name: str) -> str:
        table = _listed(schema, table_name)
        connection = self.session.connection()
        check_is_table(connection, table)
        try:
            connection.exec_driver_sql(f"TRUNCATE TABLE {table.quoted(connection)}")
        except sa.exc.NotSupportedError as error:  # a foreign key refers to it
            reason = getattr(getattr(error.orig, "diag", None), "message_detail", None) or error.orig
            raise JobRefused(f"{table} cannot be truncated: {reason} TruncateTable empties no other table.") from error
        return f"Table {table} truncated successfully"


def _listed(schema: str, table_name: str) -> TableName:
    table = TableName(schema, table_name)
    check_listed(table, default_connections().settings.truncatable_tables, SETTING)
    return table
