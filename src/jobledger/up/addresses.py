"""Where everything of one `up` is, as its children and its user are told."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOOPBACK: Final = "127.0.0.1"
"""The dashboard has no login, so it listens nowhere else."""


@dataclass(frozen=True)
class Addresses:
    """Where everything is.

    Attributes:
        servers: the URLs of Postgres and Redis, as environment variables.
        api_host: the address that the API listens on.
        api_port: its port.
        dashboard_port: the port of rq-dashboard.
    """

    servers: Mapping[str, str]
    api_host: str
    api_port: int
    dashboard_port: int

    @property
    def redis_url(self) -> str:
        """Of the Redis, password included."""
        return self.servers["JOBLEDGER_REDIS_URL"]

    @property
    def api_reachable_at(self) -> str:
        """The address at which we reach the API, which may listen on all of them."""
        try:
            address = ipaddress.ip_address(self.api_host)
        except ValueError:
            return self.api_host
        if not address.is_unspecified:
            return self.api_host
        return LOOPBACK if address.version == 4 else "::1"

    @property
    def api_url(self) -> str:
        """For a browser."""
        host = self.api_reachable_at
        return f"http://{f'[{host}]' if ':' in host else host}:{self.api_port}"

    @property
    def dashboard_url(self) -> str:
        """For a browser."""
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """The environment of all children. URLs hold passwords, and `ps` shows command lines to everybody."""
        return {
            **os.environ,
            **self.servers,
            "JOBLEDGER_API_HOST": self.api_host,
            "JOBLEDGER_API_PORT": str(self.api_port),
            "RQ_REDIS_URL": self.redis_url,  # rq prefers it to its configuration, so it must not be another one
            "RQ_DASHBOARD_REDIS_URL": self.redis_url,
            "PYTHONUNBUFFERED": "1",
        }
