"""Repair, equal in rank to the happy path: each chore is guarded statements, so that any number may run at once."""
