"""The ports of the API and the dashboard."""

import socket

from jobledger.embedded import free_port
from jobledger.errors import ConfigurationError
from jobledger.settings import Settings
from jobledger.up.output import Output


def choose_port(settings: Settings, name: str, host: str, output: Output) -> int:
    """The port from the settings; a free port for 0, or if the default port is taken.

    Args:
        settings: the settings.
        name: name of the port's setting.
        host: the address to listen on.
        output: receives a note if the default port is taken.

    Raises:
        ConfigurationError: the port is set explicitly and is not available.
    """
    port: int = getattr(settings, name)
    if port == 0:
        return free_port()
    problem = _why_not_listen(host, port)
    if problem is None:
        return port
    if name in settings.model_fields_set:
        raise ConfigurationError(f"JOBLEDGER_{name.upper()}={port}: cannot listen on {host}: {problem}")
    instead = free_port()
    output.say(f"Port {port} cannot be had ({problem}): {name.removesuffix('_port')} takes {instead}")
    return instead


def _why_not_listen(host: str, port: int) -> str | None:
    """The reason why a server cannot listen on an address; None if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return None
