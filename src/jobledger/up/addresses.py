"""The addresses of one `up`, for its children and its user."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOOPBACK: Final = "127.0.0.1"
"""Address of the dashboard, which has no login."""


@dataclass(frozen=True)
class Addresses:
    """The addresses of one `up`.

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
        """URL of Redis, password included."""
        return self.servers["JOBLEDGER_REDIS_URL"]

    @property
    def api_reachable_at(self) -> str:
        """An address at which this machine reaches the API, which may listen on all addresses."""
        try:
            address = ipaddress.ip_address(self.api_host)
        except ValueError:
            return self.api_host
        if not address.is_unspecified:
            return self.api_host
        return LOOPBACK if address.version == 4 else "::1"

    @property
    def api_url(self) -> str:
        """URL of the API, for a browser."""
        host = self.api_reachable_at
        return f"http://{f'[{host}]' if ':' in host else host}:{self.api_port}"

    @property
    def dashboard_url(self) -> str:
        """URL of the dashboard, for a browser."""
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """The environment of all children. URLs contain passwords, and `ps` shows command lines to all users."""
        return {
            **os.environ,
            **self.servers,
            "JOBLEDGER_API_HOST": self.api_host,
            "JOBLEDGER_API_PORT": str(self.api_port),
            "RQ_REDIS_URL": self.redis_url,  # takes precedence over RQ's configuration, so it must be the same Redis
            "RQ_DASHBOARD_REDIS_URL": self.redis_url,
            "PYTHONUNBUFFERED": "1",
        }
