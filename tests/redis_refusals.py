"""A real Redis that answers, and does not do what it is asked: what tests bring it into, and how it is mended."""

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from harness import eventually
from jobledger.connections.redis import make_redis
from jobledger.embedded import EmbeddedRedis, free_port

Refusal = Callable[[EmbeddedRedis], contextlib.AbstractContextManager[None]]


class ConfiguredRedis(EmbeddedRedis):
    """A Redis of our own that is started with more options; it counts as up when it loads its data.

    Args:
        directory: for its data.
        options: as on the command line of redis-server.
    """

    def __init__(self, directory: Path, *options: str, persistent: bool = False) -> None:
        super().__init__(directory, persistent=persistent)
        self._options = options

    def _popen(self, command: Sequence[Any], **how: Any) -> subprocess.Popen[bytes]:
        return super()._popen([*command, *self._options], **how)

    def _answers(self, port: int) -> bool:
        client = make_redis(f"redis://:{self._password}@127.0.0.1:{port}", 2.0)
        with contextlib.closing(client), contextlib.suppress(redis.RedisError):
            try:
                return bool(client.ping())
            except redis.BusyLoadingError:
                return True
        return False


@contextlib.contextmanager
def _changed(server: EmbeddedRedis, **changes: object) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as operator:
        before = {name: operator.config_get(name)[name] for name in changes}
        for name, value in changes.items():
            operator.config_set(name, value)
        try:
            yield operator
        finally:
            for name, value in before.items():
                operator.config_set(name, value)


@contextlib.contextmanager
def without_replicas(server: EmbeddedRedis) -> Iterator[None]:
    """NOREPLICAS."""
    with _changed(server, **{"min-replicas-to-write": 1}):
        yield


@contextlib.contextmanager
def full(server: EmbeddedRedis) -> Iterator[None]:
    """OOM."""
    with _changed(server, maxmemory=1):
        yield


@contextlib.contextmanager
def unable_to_save(server: EmbeddedRedis) -> Iterator[None]:
    """MISCONF: the file that a snapshot would replace is a directory."""
    with _changed(server, save="3600 1") as operator:
        in_the_way = Path(f"/proc/{server.pid}/cwd") / operator.config_get("dbfilename")["dbfilename"]
        in_the_way.mkdir()
        operator.set("redis_refusals", "changed")
        operator.bgsave()
        eventually(lambda: operator.info("persistence")["rdb_last_bgsave_status"] == "err", what="a save that fails")
        try:
            yield
        finally:
            in_the_way.rmdir()
            operator.bgsave()
            eventually(lambda: operator.info("persistence")["rdb_last_bgsave_status"] == "ok", what="a save")


@contextlib.contextmanager
def busy(server: EmbeddedRedis) -> Iterator[None]:
    """BUSY: a script that does not end."""
    with _changed(server, **{"lua-time-limit": 50}) as operator:

        def run() -> None:
            with redis.Redis.from_url(server.url, socket_timeout=None) as client, contextlib.suppress(redis.RedisError):
                client.eval("while true do end", 0)

        script = threading.Thread(target=run)
        script.start()
        eventually(lambda: _is_busy(operator), what="a busy Redis")
        try:
            yield
        finally:
            operator.script_kill()
            script.join()


def _is_busy(operator: redis.Redis) -> bool:
    try:
        operator.get("redis_refusals")
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


@contextlib.contextmanager
def demoted(server: EmbeddedRedis) -> Iterator[None]:
    """READONLY."""
    with _changed(server, **{"replica-serve-stale-data": "yes"}) as operator:
        operator.replicaof("127.0.0.1", free_port())
        try:
            yield
        finally:
            operator.replicaof("NO", "ONE")


@contextlib.contextmanager
def cut_off(server: EmbeddedRedis) -> Iterator[None]:
    """MASTERDOWN."""
    with _changed(server, **{"replica-serve-stale-data": "no"}) as operator:
        operator.replicaof("127.0.0.1", free_port())
        try:
            yield
        finally:
            operator.replicaof("NO", "ONE")


REFUSALS: tuple[Refusal, ...] = (without_replicas, full, unable_to_save, busy, demoted, cut_off)
