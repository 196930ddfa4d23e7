"""The servers of an `up`: those of the URLs in the settings, or embedded servers."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import redis
from pydantic import SecretStr

from jobledger.connections.postgres import make_engine, unavailable_as_error
from jobledger.connections.redis import make_redis
from jobledger.embedded import EmbeddedPostgres, EmbeddedRedis
from jobledger.errors import ConfigurationError
from jobledger.ledger.migrate import upgrade
from jobledger.settings import Settings
from jobledger.up.supervisor import Supervisor

_ANSWER_SECONDS = 2.0


class _Server:
    """A started embedded server, as a child of the supervisor."""

    def __init__(self, name: str, server: EmbeddedPostgres | EmbeddedRedis) -> None:
        self.name = name
        self._server = server

    def start(self) -> None:
        """Start it again, with the same port and password, so that its clients reconnect."""
        self._server.restart()

    def ended(self) -> str | None:
        """A note that it ended; None while it runs. This does not reap the process, because `restart()` does."""
        ended = os.waitid(os.P_PID, self._server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return "ended" if ended else None


def prepare_servers(
    settings: Settings, directory: Path, supervisor: Supervisor, cleanup: contextlib.ExitStack
) -> Mapping[str, str]:
    """Start an embedded server for each URL that is not set, and bring the schema up to date.

    Args:
        settings: the settings, with or without URLs.
        directory: directory of the embedded servers' data.
        supervisor: restarts them if they end.
        cleanup: stops them.

    Returns:
        Both URLs, as environment variables.

    Raises:
        EmbeddedServerError: a server does not start.
        ConfigurationError: the given Redis does not answer.
        LedgerUnavailable: the given Postgres does not answer.
    """

    def started(name: str, server: EmbeddedPostgres | EmbeddedRedis) -> str:
        cleanup.callback(server.stop)
        server.start()
        supervisor.watch(_Server(name, server))
        return server.url

    if _is_set(settings.redis_url):
        redis_url = settings.require_redis_url()
        _require_answer(redis_url)
    else:
        redis_url = started("redis", EmbeddedRedis(directory / "redis"))
    if _is_set(settings.database_url):
        database_url = settings.require_database_url()
    else:
        database_url = started("postgres", EmbeddedPostgres(directory / "postgres"))
    _migrate(database_url)
    return {"JOBLEDGER_DATABASE_URL": database_url, "JOBLEDGER_REDIS_URL": redis_url}


def _is_set(url: SecretStr | None) -> bool:
    """An empty URL counts as not set, so that an embedded server can replace the URL of a `.env` file."""
    return url is not None and bool(url.get_secret_value())


def _require_answer(url: str) -> None:
    try:
        with make_redis(url, _ANSWER_SECONDS) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:  # a ValueError: it is no URL
        raise ConfigurationError(f"JOBLEDGER_REDIS_URL: no answer: {error}") from None


def _migrate(url: str) -> None:
    engine = make_engine(url, "jobledger-up")
    try:
        with unavailable_as_error():
            upgrade(engine)
    finally:
        engine.dispose()
