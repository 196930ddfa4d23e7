"""RQ's own command line in this process: `rq worker` with our configuration and our client for Redis."""

import logging
from collections.abc import Sequence
from typing import Final

import click
from rq.cli.cli import main as rq

CONFIGURATION: Final = "jobledger.rq_config"
CONNECTION_CLASS: Final = "jobledger.worker.ResilientRedis"

TTL_SECONDS: Final = 60
"""An idle worker waits 15 s less than this in one pop, and 5 s less for an answer; then it sends a heartbeat."""

_QUITS: Final = "quitting..."


class _Endings(logging.Filter):
    """Notices that RQ's worker gave up: only its log shows that, and its exit code is 0 (rq 3.0
    worker/base.py:676)."""

    gave_up = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if record.levelno >= logging.ERROR and str(record.msg).endswith(_QUITS):
            self.gave_up = True
        return True


def work(queues: Sequence[str], arguments: Sequence[str]) -> int:
    """Run an RQ worker until it ends.

    Args:
        queues: names; none for those of the settings.
        arguments: further arguments for RQ.

    Returns:
        The exit code: 0 if it ended because of a signal or of its arguments.
    """
    endings = _Endings()
    logging.getLogger("rq.worker").addFilter(endings)
    ours = ["worker", "-c", CONFIGURATION, "--connection-class", CONNECTION_CLASS, "--worker-ttl", str(TTL_SECONDS)]
    try:
        rq.main([*ours, *arguments, *queues], prog_name="rq", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return int(endings.gave_up)
