"""Reads a CSV file for Postgres' COPY, with line numbers; never more than a batch in memory.

Python's csv module parses it, because errors must name the lines. COPY gets its text format, which has few escapes,
with the same meaning in every version of Postgres.
"""

import csv
import io
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from jobledger.etl.bad_file import MOST_NAMED, BadFile, BadRow, BadRows
from jobledger.etl.data_file import Unpacked

BATCH_ROWS: Final = 2_000
LONGEST_LINE: Final = 1024 * 1024
"""Longest line, in characters. Without a limit, a file without line breaks would be read into memory whole."""

_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class CsvRows:
    """A CSV file in UTF-8 whose first line names the columns, as a file object for COPY.

    Args:
        path: name of the file in errors.
        file: its bytes.
        delimiter: one character.
        report: called with the number of rows so far, after each batch.

    Attributes:
        header: the names in the first line.
        count: rows read so far.
        last_line: last line that was read.
        error: the exception that stopped COPY, which itself keeps only the message.

    Raises:
        BadFile: there is no header.
    """

    def __init__(self, path: str, file: Unpacked, delimiter: str, report: Callable[[int], None]) -> None:
        self._path = path
        self._report = report
        text = io.TextIOWrapper(
            io.BufferedReader(file, buffer_size=256 * 1024),
            encoding="utf-8-sig",  # with or without a byte order mark
            errors="surrogateescape",  # invalid UTF-8 is reported with its row; see `_encode`
            newline="",
        )
        self._reader = csv.reader(_short_lines(text, path), delimiter=delimiter, strict=True)
        self._bad: list[BadRow] = []
        self._ended = False
        self.count = 0
        self.last_line = 0
        self.error: BaseException | None = None
        self.header = self._read_header()

    def read(self, _size: int = -1) -> bytes:
        """The next rows for COPY, line number first; empty at the end.

        Raises:
            BadFile: it cannot be read further, or has invalid rows, of which the first are named.
        """
        try:
            while not self._ended and len(self._bad) < MOST_NAMED:
                data = self._encode(self._next_batch())
                if data and not self._bad:
                    self._report(self.count)
                    return data
            if self._bad:
                raise BadRows(self._path, self._bad)
        except BaseException as error:
            self.error = error
            raise
        return b""

    def _read_header(self) -> tuple[str, ...]:
        try:
            header = next(self._reader, None)
        except csv.Error as error:
            raise BadFile(f"{self._path}: line 1 cannot be read: {error}.") from None
        if not header:
            raise BadFile(f"{self._path}: the first line must name the columns, and is empty.")
        self.last_line = self._reader.line_num
        return tuple(header)

    def _next_batch(self) -> list[tuple[int, list[str]]]:
        """The next rows, each with its line; rows of a wrong length are collected as bad rows."""
        batch: list[tuple[int, list[str]]] = []
        width, read = len(self.header), 0
        try:
            for fields in islice(self._reader, BATCH_ROWS):
                read += 1
                line, self.last_line = self.last_line + 1, self._reader.line_num
                if len(fields) == width:
                    batch.append((line, fields))
                elif fields:  # an empty line is no row
                    self._bad.append(BadRow(line, "", "", f"has {len(fields)} fields, the header has {width}"))
        except csv.Error as error:
            self._bad.append(BadRow(self.last_line + 1, "", "", f"cannot be read as CSV: {error}"))
        self._ended = read < BATCH_ROWS
        self.count += len(batch)
        return batch

    def _encode(self, batch: list[tuple[int, list[str]]]) -> bytes:
        text = "".join([_copy_line(line, fields) for line, fields in batch])
        try:
            if "\x00" not in text:
                return text.encode()
        except UnicodeEncodeError:  # a byte that was no UTF-8 has become a lone surrogate
            pass
        for line, fields in batch:
            for name, value in zip(self.header, fields, strict=True):
                if problem := _unstorable(value):
                    self._bad.append(BadRow(line, name, value, problem))
        return b""


def _copy_line(line: int, fields: list[str]) -> str:
    text = "\t".join(fields)
    if "\\" in text or "\n" in text or "\r" in text or text.count("\t") >= len(fields):
        text = "\t".join([field.translate(_ESCAPES) for field in fields])
    return f"{line}\t{text}\n"


def _unstorable(value: str) -> str | None:
    if "\x00" in value:
        return "holds a NUL character, which Postgres cannot store"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


def _short_lines(text: io.TextIOWrapper, path: str) -> Iterator[str]:
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise BadFile(f"{path}: line {number} is longer than {LONGEST_LINE:,} characters.")
        yield line
