"""Connections of a process to Postgres and Redis: engine and clients, deadlines, waits for locks."""
