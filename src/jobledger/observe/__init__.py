"""Logs, health and counts of the system; read-only views of the ledger and Redis."""
