"""Files as open descriptors, for a server or for this process."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file, open while the block runs; a new file is readable for its owner only."""
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def memory_file(content: str) -> Iterator[int]:
    """A file without a name, which a child of another account may read too."""
    fd = os.memfd_create("jobledger")
    try:
        os.write(fd, content.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
