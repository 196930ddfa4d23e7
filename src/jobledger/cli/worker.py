"""`worker`."""

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Final

import click
import redis

from jobledger.cli.configuration import connect
from jobledger.cli.parameters import QUEUE
from jobledger.connections.default import Connections
from jobledger.connections.redis import make_redis
from jobledger.connections.sessions import require_sessions
from jobledger.errors import ConfigurationError, LedgerUnavailable
from jobledger.observe.log import get_logger
from jobledger.registry import load_job_modules
from jobledger.worker.command import work

log: Final = get_logger(__name__)

LOOK_SECONDS: Final = 2.0
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0

_FOR_RQ: Final = "jobledger.for_rq"


class _PassesOn(click.Command):
    """Keeps the arguments after `--` apart."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        end = arguments.index("--") if "--" in arguments else len(arguments)
        context.meta[_FOR_RQ] = arguments[end + 1 :]
        return super().parse_args(context, arguments[:end])

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(context), "[-- RQ_ARGUMENTS…]"]


@click.command(cls=_PassesOn)
@click.argument("queues", nargs=-1, type=QUEUE)
@click.pass_context
def worker(context: click.Context, queues: tuple[str, ...]) -> None:
    """Run jobs: RQ's worker with our settings. Any number may run.

    Takes jobs from QUEUES, in that order; by default from JOBLEDGER_QUEUES. Waits until Redis answers, then becomes
    `rq worker`, as the same process. Arguments after -- are for RQ, for example: worker high -- --burst --name mine

    After SIGTERM it takes no more jobs; the running job has JOBLEDGER_DRAIN_SECONDS, then another worker gets it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    connections = connect("jobledger-worker", needs_redis=True, is_service=True)
    load_job_modules(connections.settings.job_modules)  # RQ loads them again, but would not show an error in them
    _require_sessions(connections)
    url = connections.settings.require_redis_url()
    _wait_for_redis(url)
    # For RQ this variable takes precedence over its configuration, so it must not name another Redis.
    os.environ["RQ_REDIS_URL"] = url
    named = [connections.settings.queue_in_redis(one) for one in queues]
    context.exit(work(named, context.meta[_FOR_RQ]))


def _require_sessions(connections: Connections) -> None:
    """Refuse a pooler in transaction mode, if Postgres answers; while it does not, no job starts.

    Raises:
        ConfigurationError: there is such a pooler.
    """
    with suppress(LedgerUnavailable):
        require_sessions(connections, "workers need")
    connections.close()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _wait_for_redis(url: str) -> None:
    """Return when Redis answers, however long that takes.

    Raises:
        ConfigurationError: it refuses the login.
    """
    pause = FIRST_PAUSE_SECONDS
    waiting = False
    while True:
        try:
            with make_redis(url, LOOK_SECONDS) as client:
                client.ping()
        except redis.AuthenticationError as error:
            raise ConfigurationError(f"JOBLEDGER_REDIS_URL: {error}") from None
        except redis.RedisError as error:
            if not waiting:
                log.warning("Redis is away: waiting for it", error=str(error))
                waiting = True
        else:
            if waiting:
                log.info("Redis answers")
            return
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
