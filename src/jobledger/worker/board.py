"""Shared memory between the processes that run attempts and the keeper of their leases.

A process notes its attempts; the keeper notes the ledger's answers. A note costs no system call, and no process waits
for another. Each note has one writer, which is never a child that the job has forked, and a checksum: a reader of a
half-written note gets None, and reads again.
"""

import mmap
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from typing import Final

from jobledger.observe.log_run import LOG_TAIL_BYTES

SLOTS: Final = 64
"""Attempts of one keeper, at most."""

_HEADER: Final = struct.Struct("<dB")
_NOTE: Final = struct.Struct("<II")
_ATTEMPT_BYTES: Final = 8192
_ANSWER_BYTES: Final = 12_288
_TAIL_BYTES: Final = _NOTE.size + LOG_TAIL_BYTES
_SLOT_BYTES: Final = _ATTEMPT_BYTES + _ANSWER_BYTES + _TAIL_BYTES
_BEGINNING: Final = 64


class Note:
    """A place for one text; its writer replaces it, its reader copies it."""

    def __init__(self, memory: mmap.mmap, offset: int, size: int) -> None:
        self._memory = memory
        self._offset = offset
        self._size = size

    def write(self, text: bytes) -> None:
        """Replace the note.

        Raises:
            ValueError: it is too long for its place.
        """
        begin = self._offset + _NOTE.size
        if begin + len(text) > self._offset + self._size:
            raise ValueError(f"A note of {len(text)} bytes does not fit into {self._size}.")
        self._memory[begin : begin + len(text)] = text
        _NOTE.pack_into(self._memory, self._offset, len(text), zlib.crc32(text))

    def erase(self) -> None:
        """Leave the place empty."""
        _NOTE.pack_into(self._memory, self._offset, 0, 0)

    def read(self) -> bytes | None:
        """The note; empty if there is none, None if it is being written."""
        length, checksum = _NOTE.unpack_from(self._memory, self._offset)
        begin = self._offset + _NOTE.size
        text = self._memory[begin : begin + min(length, self._size - _NOTE.size)]
        return text if zlib.crc32(text) == checksum else None

    @property
    def is_empty(self) -> bool:
        """Whether the place is empty."""
        return bool(_NOTE.unpack_from(self._memory, self._offset)[0] == 0)


class Slot:
    """The place of one attempt.

    Attributes:
        attempt: the running attempt, written by its process.
        tail: the last lines of its log, written by its process.
        answer: the ledger's answer, written by the keeper.
    """

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        begin = _BEGINNING + number * _SLOT_BYTES
        self.number = number
        self.attempt = Note(memory, begin, _ATTEMPT_BYTES)
        self.answer = Note(memory, begin + _ATTEMPT_BYTES, _ANSWER_BYTES)
        self.tail = Note(memory, begin + _ATTEMPT_BYTES + _ANSWER_BYTES, _TAIL_BYTES)


class Board:
    """All slots of one keeper; forked processes share it, others open it by its path.

    Args:
        path: of a board that another process has made; None for a new one.
    """

    def __init__(self, path: str | None = None) -> None:
        size = _BEGINNING + SLOTS * _SLOT_BYTES
        if path is None:
            descriptor = os.memfd_create("jobledger-leases")
            os.ftruncate(descriptor, size)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, size)
        self._slots = [Slot(self._memory, number) for number in range(SLOTS)]
        self._taking = threading.Lock()
        self._mine: set[int] = set()

    @property
    def path(self) -> str:
        """The path for processes of the same user, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def take(self) -> Slot | None:
        """A slot for an attempt of this process; None if all are taken.

        A slot whose process died is not reused before the keeper has ended its attempt.
        """
        with self._taking:
            for slot in self._slots:
                if slot.number not in self._mine and slot.attempt.is_empty:
                    self._mine.add(slot.number)
                    slot.answer.erase()
                    slot.tail.erase()
                    return slot
        return None

    def give_back(self, slot: Slot) -> None:
        """Free the slot of an attempt that is over."""
        with self._taking:
            slot.attempt.erase()
            self._mine.discard(slot.number)

    def beat(self, moment: float, *, is_ready: bool) -> None:
        """Note the keeper's sign of life.

        Args:
            moment: on the monotonic clock, which all processes of a host share.
            is_ready: whether it has its connection to Postgres.
        """
        _HEADER.pack_into(self._memory, 0, moment, is_ready)

    @property
    def beaten_at(self) -> float:
        """The time of the keeper's last sign of life; 0 before the first."""
        return float(_HEADER.unpack_from(self._memory)[0])

    @property
    def is_ready(self) -> bool:
        """Whether the keeper had its connection to Postgres at its last sign of life."""
        return bool(_HEADER.unpack_from(self._memory)[1])
