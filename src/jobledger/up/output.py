"""One stream of lines from many children, each line with the name of its program."""

import contextlib
import os
import selectors
import sys
import time
from pathlib import Path
from typing import IO, Final, Self

from jobledger.observe.log_lines import labelled_json

_READ_BYTES: Final = 65536
_LONGEST_LINE_BYTES: Final = 65536
_COLOURS: Final = (36, 33, 32, 35, 34)
_OURSELVES: Final = "up"


class _Stream:
    """The output of one child, and its unfinished line."""

    def __init__(self, name: str, pipe: IO[bytes]) -> None:
        self.name = name
        self.pipe = pipe
        self.unfinished = b""


class Output:
    """Collects the output of the children. A context manager.

    Args:
        width: width of the column of names.
        log_file: file to which the children's lines are appended, instead of being shown.
        as_json: write each line as a JSON object, with the name as `program`; other text becomes its `event`.
    """

    def __init__(self, width: int, log_file: Path | None = None, *, as_json: bool = False) -> None:
        self._width = width
        self._as_json = as_json
        self._selector = selectors.DefaultSelector()
        self._sink: IO[bytes] = log_file.open("ab", buffering=0) if log_file else sys.stdout.buffer
        self._owns_sink = log_file is not None
        self._colours: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        if self._owns_sink:
            self._sink.close()

    def attach(self, name: str, pipe: IO[bytes]) -> None:
        """Take ownership of a child's pipe, and read its lines until it ends."""
        self._selector.register(pipe, selectors.EVENT_READ, _Stream(name, pipe))

    def pump(self, seconds: float) -> None:
        """Wait at most this long for output, and show it."""
        for key, _ in self._selector.select(seconds):
            self._read(key.data)

    def drain(self, seconds: float) -> None:
        """Show the rest of the output of ended children."""
        deadline = time.monotonic() + seconds
        while self._selector.get_map() and (left := deadline - time.monotonic()) > 0:
            self.pump(left)

    def say(self, text: str) -> None:
        """Show a line of `up` itself."""
        self._write(sys.stdout.buffer, _OURSELVES, [text.encode()])

    def _read(self, stream: _Stream) -> None:
        data = os.read(stream.pipe.fileno(), _READ_BYTES)
        *lines, stream.unfinished = (stream.unfinished + data).split(b"\n")
        if stream.unfinished and (not data or len(stream.unfinished) > _LONGEST_LINE_BYTES):
            lines.append(stream.unfinished)
            stream.unfinished = b""
        self._write(self._sink, stream.name, lines)
        if not data:
            self._selector.unregister(stream.pipe)
            stream.pipe.close()

    def _write(self, sink: IO[bytes], name: str, lines: list[bytes]) -> None:
        # The terminal or reader may be gone, which must not prevent an orderly stop.
        with contextlib.suppress(OSError):
            sink.write(b"".join(self._labelled(sink, name, lines)))
            sink.flush()

    def _labelled(self, sink: IO[bytes], name: str, lines: list[bytes]) -> list[bytes]:
        if self._as_json:
            return [f"{labelled_json(name, line.decode(errors='backslashreplace'))}\n".encode() for line in lines]
        prefix = f"{name:{self._width}} | ".encode()
        if sink.isatty() and "NO_COLOR" not in os.environ:
            colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            prefix = b"\x1b[%dm%b\x1b[0m" % (colour, prefix)
        return [prefix + line + b"\n" for line in lines]
