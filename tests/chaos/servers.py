"""The servers of chaos runs, each behind a proxy that can do to connections what networks do."""

import itertools
import os
import re
import signal
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import redis
import sqlalchemy as sa

from chaos_jobs import EFFECTS
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from observer import is_alive
from proxy import Proxy

TEMPLATE: Final = "template_chaos"

MOVES: Final = """
CREATE TABLE status_moves (
    number bigserial, job_id uuid, was text, now text, attempt int, at timestamptz DEFAULT clock_timestamp()
);
CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO status_moves (job_id, was, now, attempt)
    VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status, NEW.attempt);
    RETURN NULL;
END $$;
CREATE TRIGGER note_insert AFTER INSERT ON job_statuses FOR EACH ROW EXECUTE FUNCTION note_move();
CREATE TRIGGER note_update AFTER UPDATE ON job_statuses FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_move();
CREATE TABLE sweeps_seen (by text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note_sweep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sweeps_seen (by) VALUES (NEW.swept_by);
    RETURN NULL;
END $$;
CREATE TRIGGER note_sweep AFTER INSERT OR UPDATE ON sweeps FOR EACH ROW EXECUTE FUNCTION note_sweep();
"""
"""Witnesses in the database that no code of the system knows."""


class Servers:
    """A Postgres and a Redis of our own. A context manager; start and end it in the main thread.

    Args:
        directory: for all their files.
        seed: of the proxies' chance.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._embedded = EmbeddedServers(directory)
        self._seed = seed
        self._numbers = itertools.count(1)
        self.postgres = self._embedded.postgres
        self.redis = self._embedded.redis

    def __enter__(self) -> "Servers":
        self._embedded.start()
        try:
            self.redis_proxy = Proxy("127.0.0.1", self.redis.port, seed=self._seed)
            self.postgres_proxy = Proxy("127.0.0.1", self.postgres.port, seed=self._seed)
            self._make_template()
        except BaseException:
            self._embedded.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.redis_proxy.close()
        self.postgres_proxy.close()
        self._embedded.stop()

    def new_database(self) -> "Database":
        """A migrated database of its own for a run, and an empty Redis."""
        name = f"chaos_{next(self._numbers)}"
        self.postgres.create_database(name, template=TEMPLATE)
        with self.redis_client() as client:
            client.flushall()
        return Database(self, name)

    def redis_client(self) -> redis.Redis:
        """For the witness: past the proxy."""
        return redis.Redis.from_url(self.redis.url, socket_timeout=5, socket_connect_timeout=5)

    def kill_redis(self, *, keep: bool) -> None:
        """SIGKILL, and a new one on the same port, with what its append-only file holds or with nothing."""
        pid = self.redis.pid
        self.redis.kill(signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if not keep:
            for path in (self.redis.directory / "data").glob("*.aof"):
                path.unlink()
        self.redis.restart()

    def kill_postgres(self) -> None:
        """What `pg_ctl stop -m immediate` does, and a new start, which recovers from the log."""
        self.postgres.kill(signal.SIGQUIT)
        self.postgres.restart()

    def revive_postgres(self) -> None:
        """Start Postgres again if it could not live on."""
        if not is_alive(self.postgres.pid):
            self.postgres.restart()

    def heal(self) -> None:
        """Whatever a fault left: both answer, and the network is well."""
        for proxy in (self.redis_proxy, self.postgres_proxy):
            proxy.mode("pass")
        for server in (self.redis, self.postgres):
            if not is_alive(server.pid):
                server.restart()
        with self.redis_client() as client:
            client.config_set("maxmemory", 0)
            client.replicaof("NO", "ONE")

    def _make_template(self) -> None:
        self.postgres.create_database(TEMPLATE)
        engine = make_engine(self.postgres.url_for(TEMPLATE), "chaos template")
        upgrade(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql(EFFECTS)
            connection.exec_driver_sql(MOVES)
        engine.dispose()


class Database:
    """The database of one run. The system reaches it and Redis through the proxies, the witness does not."""

    def __init__(self, servers: Servers, name: str) -> None:
        self._servers = servers
        self.name = name
        self.engine = sa.create_engine(
            servers.postgres.url_for(name),
            poolclass=sa.NullPool,
            connect_args={"application_name": "chaos witness", "connect_timeout": 5},
        )

    @property
    def system_environment(self) -> dict[str, str]:
        """Where processes of the system find the servers: behind the proxies."""
        return {
            "JOBLEDGER_DATABASE_URL": with_port(
                self._servers.postgres.url_for(self.name), self._servers.postgres_proxy.port
            ),
            "JOBLEDGER_REDIS_URL": with_port(self._servers.redis.url, self._servers.redis_proxy.port),
        }

    def rows(self, sql: str, **parameters: object) -> list[sa.Row]:
        """The rows of a query, in a transaction of its own."""
        with self.engine.begin() as connection:
            return list(connection.execute(sa.text(sql), parameters))

    def value(self, sql: str, **parameters: object) -> object:
        """The first column of the first row; None if there is none."""
        rows = self.rows(sql, **parameters)
        return rows[0][0] if rows else None

    def execute(self, sql: str, **parameters: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(sql), parameters)

    def drop(self) -> None:
        self.engine.dispose()
        self._servers.postgres.drop_database(self.name)


def with_port(url: str, port: int) -> str:
    """The same URL with another port."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=re.sub(r":\d+$", f":{port}", parts.netloc)))
