"""The job classes that ship with the package; importing this registers them."""

from jobledger.jobs.on_failed import OnFailed

__all__ = ["OnFailed"]
