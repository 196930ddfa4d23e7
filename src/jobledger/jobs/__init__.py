"""The job classes that ship with the package; importing this registers them."""

from jobledger.etl.load_csv import LoadCsv
from jobledger.etl.truncate_table import TruncateTable
from jobledger.jobs.own import OnFailed

__all__ = ["LoadCsv", "OnFailed", "TruncateTable"]
