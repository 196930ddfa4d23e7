"""The job classes that ship with the package; importing this registers them."""

from jobledger.jobs.load_csv import LoadCsv
from jobledger.jobs.on_failed import OnFailed
from jobledger.jobs.truncate_table import TruncateTable

__all__ = ["LoadCsv", "OnFailed", "TruncateTable"]
