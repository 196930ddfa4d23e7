"""The job classes for tables and files that ship with the package."""
