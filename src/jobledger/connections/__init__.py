"""Postgres and Redis, as one process reaches them: engine and clients, deadlines, waits for locks."""
