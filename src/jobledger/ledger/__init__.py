"""The tables, their one writer of statuses, and the reads."""
