"""Who runs a command: kept with what was asked for."""

import getpass
import os
import socket


def who() -> str:
    """Who runs this command, as far as the machine knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers like to have
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"
