"""A TCP proxy in front of a server that does to connections what networks do to them."""

import asyncio
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

ADDRESS: Final = "127.0.0.1"
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all: close() sends RST

MODES: Final = re.compile(r"(pass|cut|freeze)|(delay|drop_replies):([0-9.]+)")


class Proxy:
    """Passes on all that clients of `port` and the server say to each other, or less.

    Its work is done by a thread of its own; all methods may be called from any thread, and have taken effect when they
    return. A context manager.

    Args:
        target_host: where the server listens.
        target_port: likewise.
        seed: of the chance in `drop_replies`.
    """

    def __init__(self, target_host: str, target_port: int, seed: int | None = None) -> None:
        self.target = (target_host, target_port)
        self.accepted = 0
        """Connections of clients so far."""
        self.swallowed = 0
        """Replies that were lost on the way so far."""
        self.current = "pass"
        self.amount = 0.0
        self.chance = random.Random(seed)
        self.links: set[Link] = set()
        self.awaited: list[tuple[bytes, threading.Event]] = []
        self._listener = socket.create_server((ADDRESS, 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._do(lambda: self.loop.add_reader(self._listener, self._accept))

    def mode(self, name: str) -> None:
        """What happens from now on.

        Args:
            name: `pass`; `cut`: connections are reset, new ones at once; `freeze`: nothing arrives any more, nobody is
                told, and new connections hang; `delay:0.5`: both directions take so many seconds; `drop_replies:0.01`:
                so large a share of the server's chunks is lost, and the client's connection reset.

        Raises:
            ValueError: no such mode.
        """
        found = MODES.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is none of pass, cut, freeze, delay:SECONDS, drop_replies:SHARE")
        self._do(lambda: self._change(found[1] or found[2], float(found[3] or 0)))

    def drop_next_reply(self, matching: bytes) -> threading.Event:
        """Swallow the reply to the next request that contains these bytes, then reset its client's connection.

        Returns:
            is set when that has happened; the server has done what it was asked by then.
        """
        happened = threading.Event()
        self._do(lambda: self.awaited.append((matching, happened)))
        return happened

    def close(self) -> None:
        """Reset all connections and free the port. Idempotent."""
        if self.loop.is_closed():
            return
        self._do(self._stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, action: Callable[[], object]) -> None:
        """Do it in the proxy's thread, and wait until it is done."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                action()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.loop.call_soon_threadsafe(run)
        done.result(10)

    def _change(self, word: str, amount: float) -> None:
        self.current, self.amount = word, amount
        if word == "cut":
            self._reset_all()
        if word == "freeze":
            self.loop.remove_reader(self._listener)  # the kernel goes on accepting, into the backlog
        else:
            self.loop.add_reader(self._listener, self._accept)
        for link in list(self.links):
            link.freeze() if word == "freeze" else link.thaw()

    def _reset_all(self) -> None:
        for link in list(self.links):
            link.reset()

    def _run(self) -> None:
        self.loop.run_forever()
        while opening := asyncio.all_tasks(self.loop):
            self.loop.run_until_complete(asyncio.wait(opening))
        self.loop.run_until_complete(asyncio.sleep(0))  # the transports close their sockets
        self.loop.close()

    def _stop(self) -> None:
        self.loop.remove_reader(self._listener)
        self._listener.close()
        self._reset_all()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it went away before its turn
        self.accepted += 1
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        if self.current == "cut":
            reset(client)
        else:
            link = Link(self, client)
            self.links.add(link)
            link.opening = self.loop.create_task(link.open())


class Link:
    """A connection of a client and the one to the server that belongs to it."""

    opening: "asyncio.Task[None]"

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self.proxy = proxy
        self._accepted = client
        self.client = Side(self, from_server=False)
        self.server = Side(self, from_server=True)
        self.dropped: threading.Event | None = None
        """The reply that comes next will be lost; tell so by this."""
        self.tail = b""

    async def open(self) -> None:
        """Connect to the server, then listen to the client; reset it if the server is not there."""
        try:
            await self.proxy.loop.create_connection(lambda: self.server, *self.proxy.target)
            await self.proxy.loop.connect_accepted_socket(lambda: self.client, self._accepted)
        except OSError:
            self.reset()

    def reset(self) -> None:
        """RST in both directions."""
        self.proxy.links.discard(self)
        self.opening.cancel()
        for side in (self.client, self.server):
            side.abort()
        if self.client.transport is None:
            reset(self._accepted)

    def freeze(self) -> None:
        for side in (self.client, self.server):
            side.hold()

    def thaw(self) -> None:
        for side in (self.client, self.server):
            side.release()

    def asked(self, request: bytes) -> None:
        """Look whether this is the request whose reply is to be lost."""
        if not self.proxy.awaited:
            return
        seen = self.tail + request
        for number, (matching, happened) in enumerate(self.proxy.awaited):
            if matching in seen:
                self.dropped = happened
                del self.proxy.awaited[number]
                break
        self.tail = seen[-64:]

    def lose_reply(self) -> bool:
        """Whether this chunk of the server is lost; if so, the client's connection ends."""
        proxy = self.proxy
        lost = proxy.current == "drop_replies" and proxy.chance.random() < proxy.amount
        if self.dropped is None and not lost:
            return False
        proxy.swallowed += 1
        # No reset for the server: that could take from it what it has not yet read of the request.
        proxy.links.discard(self)
        self.server.close()
        self.client.abort()
        if self.dropped is not None:
            self.dropped.set()
        return True


def reset(connection: socket.socket) -> None:
    """RST instead of an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()


class Side(asyncio.Protocol):
    """What one of the two says; it goes to the other one."""

    def __init__(self, link: Link, *, from_server: bool) -> None:
        self.link = link
        self.from_server = from_server
        self.transport: Any = None
        self._full = False
        """The other one takes no more at the moment."""
        self._due = 0.0
        self._held: list[bytes | None] | None = None
        """What has come since the freeze; None is the end."""

    @property
    def other(self) -> "Side":
        return self.link.client if self.from_server else self.link.server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self.from_server:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.link.proxy.current == "freeze":
            self.hold()

    def data_received(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif self.from_server:
            if not self.link.lose_reply():
                self._later(lambda: self.other.write(data))
        else:
            self.link.asked(data)
            self._later(lambda: self.other.write(data))

    def connection_lost(self, error: Exception | None) -> None:
        if self._held is not None:
            self._held.append(None)
        else:
            self._later(self._pass_on_end)

    def eof_received(self) -> None:
        """Close this side, and then the other one: nothing here speaks to a peer that has hung up."""

    def pause_writing(self) -> None:
        self.other._full = True
        self.other._read_or_not()

    def resume_writing(self) -> None:
        self.other._full = False
        self.other._read_or_not()

    def hold(self) -> None:
        if self._held is None:
            self._held = []
        self._read_or_not()

    def release(self) -> None:
        """Say all that was held back, in order."""
        held, self._held = self._held, None
        for data in held or []:
            self.data_received(data) if data is not None else self.connection_lost(None)
        self._read_or_not()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            if not self.transport.is_closing():
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.transport.abort()

    def _pass_on_end(self) -> None:
        self.link.proxy.links.discard(self.link)
        self.other.close()

    def _later(self, action: Callable[[], None]) -> None:
        """Now, or when the delay is over; never before what came earlier."""
        proxy, now = self.link.proxy, self.link.proxy.loop.time()
        due = max(self._due, now + (proxy.amount if proxy.current == "delay" else 0))
        if due <= now:
            action()
        else:
            self._due = due
            proxy.loop.call_at(due, action)

    def _read_or_not(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._held is not None or self._full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
