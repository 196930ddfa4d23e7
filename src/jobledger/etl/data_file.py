"""Files in the data directory: finding them, and reading them unpacked.

The path in a dispatch is untrusted input: it must lie in the directory, also after resolving all links, and name a
regular file.
"""

import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, cast

from jobledger.errors import JobRefused
from jobledger.etl.bad_file import BadFile

MAX_UNPACKED_BYTES: Final = 8 * 1024**3
"""Most bytes that are read of an unpacked file: a small archive can unpack to petabytes."""

_BUFFER_BYTES: Final = 256 * 1024


def locate(data_dir: Path, path: str) -> Path:
    """Find a file by its path in the data directory.

    Args:
        data_dir: the directory.
        path: path below it; an absolute path is allowed if it leads there.

    Returns:
        The file, absolute and free of links.

    Raises:
        JobRefused: the path leads out of the directory, or to no readable regular file.
    """
    inside = Path(os.path.abspath(data_dir))  # noqa: PTH100 - `..` in the setting, without following links
    given = Path(path)
    if not path or ".." in given.parts or not (inside / given).is_relative_to(inside):
        raise JobRefused(f"path={path!r}: only files below the data directory can be loaded.")
    try:
        file = (inside / given).resolve(strict=True)
        if not file.is_relative_to(inside.resolve()):
            raise JobRefused(f"path={path!r} leads out of the data directory.")
        mode = file.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise JobRefused(f"path={path!r} cannot be read in the data directory: {reason}.") from None
    if not stat.S_ISREG(mode) or not os.access(file, os.R_OK):
        raise JobRefused(f"path={path!r} is no file that can be read.")
    return file


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, up to a limit, with the share of the file that was read."""

    def __init__(self, name: str, packed: IO[bytes], source: IO[bytes], limit: int) -> None:
        super().__init__()
        self._name = name
        self._packed = packed
        self._packed_size = max(1, os.fstat(packed.fileno()).st_size)
        self._source = source
        self._left = limit
        self._limit = limit

    @property
    def share(self) -> float:
        """Share of the file that has been read, from 0 to 1."""
        return min(1.0, self._packed.tell() / self._packed_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._source.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise BadFile(f"{self._name} is damaged: {error or type(error).__name__}.") from error
        self._left -= len(data)
        if self._left < 0:
            raise BadFile(f"{self._name} unpacks to more than {self._limit:,} bytes, which is the limit.")
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def unpacked(file: Path) -> Iterator[Unpacked]:
    """Open a file that `locate` found: gzip if its name ends in .gz, the only member of a zip if .zip, else plain.

    Raises:
        BadFile: it is no such archive.
        JobRefused: it is no longer a regular file.
    """
    with ExitStack() as stack:
        packed = stack.enter_context(_open_plain(file))
        source: IO[bytes] = packed
        if file.suffix.lower() == ".gz":
            source = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=packed)))
        elif file.suffix.lower() == ".zip":
            source = stack.enter_context(_only_member(file.name, packed, stack))
        yield Unpacked(file.name, packed, source, MAX_UNPACKED_BYTES)


def _open_plain(file: Path) -> IO[bytes]:
    """Open without following a link, or blocking on a pipe, that replaced the file since it was checked."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise JobRefused(f"{file.name} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise JobRefused(f"{file.name} is no file that can be read.")
    return os.fdopen(descriptor, "rb")


def _only_member(name: str, packed: IO[bytes], stack: ExitStack) -> IO[bytes]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(packed))
    except zipfile.BadZipFile as error:
        raise BadFile(f"{name} is no zip archive: {error}.") from error
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise BadFile(f"{name} holds {len(members)} files; it must hold one.")
    try:
        return archive.open(members[0])
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:  # encryption; unknown compression
        raise BadFile(f"{name} cannot be read: {error}.") from error
