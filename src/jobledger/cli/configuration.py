"""The set-up of commands: valid settings, connections, logs, and the user's name."""

import getpass
import logging.config
import os
import socket
from typing import Final

import sqlalchemy as sa

from jobledger.connections.default import Connections, configure
from jobledger.connections.redis import make_redis
from jobledger.errors import ConfigurationError
from jobledger.observe.log import logging_config, set_up_logging
from jobledger.settings import Settings

_DRIVER: Final = "postgresql+psycopg2"


def connect(application_name: str, *, needs_redis: bool = False, is_service: bool = False) -> Connections:
    """The process's default connections; nothing is connected yet.

    Args:
        application_name: name of the connections in `pg_stat_activity`.
        needs_redis: whether the command needs a URL of Redis.
        is_service: the command runs until it is stopped, and uses the settings' log level; others log warnings only.

    Raises:
        ConfigurationError: a setting is missing or wrong.
    """
    connections = configure()
    connections.application_name = application_name
    settings = connections.settings
    if is_service:
        set_up_logging(settings)
    else:
        logging.config.dictConfig(logging_config(settings, "WARNING"))
    settings.require_database_url()
    if needs_redis:
        settings.require_redis_url()
    for problem in wrong_urls(settings):
        raise ConfigurationError(problem)
    return connections


def wrong_urls(settings: Settings) -> list[str]:
    """The syntax errors of the URLs in the settings, without passwords."""
    problems = []
    if settings.database_url is not None:
        try:
            url = sa.make_url(settings.require_database_url())
        except (sa.exc.ArgumentError, ValueError):
            problems.append(f"JOBLEDGER_DATABASE_URL is no URL; say {_DRIVER}://user:password@host/name.")
        else:
            if url.drivername != _DRIVER:
                problems.append(f"JOBLEDGER_DATABASE_URL names the driver {url.drivername!r}; say {_DRIVER}://….")
    if settings.redis_url is not None:
        try:
            make_redis(settings.require_redis_url()).close()
        except ValueError as error:
            problems.append(f"JOBLEDGER_REDIS_URL: {error}")
    return problems


def who() -> str:
    """The user of this command and the host: `name@host`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in many containers
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"
