"""A dispatch of many rows in parts, in one transaction: each part is one statement with its own deadline.

So the time for a dispatch grows with its size, a frozen Postgres is noticed within the time of one part, and the size
of a statement is bounded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.dispatch.admission import Request
from jobledger.domain.records import NewJob, Wake

MOST_ROWS: Final = 1000
MOST_CHARACTERS: Final = 4 * 1024 * 1024
"""Most characters of payloads in one part, unless a single payload has more."""

SECONDS_PER_ROW: Final = 0.005
"""Thirty times the duration of one row on a small server, indexes and commit included."""

CHARACTERS_PER_SECOND: Final = 2 * 1024 * 1024


@dataclass(slots=True)
class Part:
    """Some rows of a dispatch.

    Attributes:
        places: positions of the rows in the dispatch.
    """

    rows: list[NewJob] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Longest duration of the part. A part of one row has the time of a single dispatch."""
        characters = sum(len(row.payload) for row in self.rows)
        return DISPATCH_SECONDS + (len(self.rows) - 1) * SECONDS_PER_ROW + characters // CHARACTERS_PER_SECOND


def in_parts(rows: Sequence[NewJob], requests: Sequence[Request]) -> list[Part]:
    """Split a dispatch.

    Rows with unique keys are sorted by key, so that two dispatches with common keys do not deadlock. Rows of one key,
    of which one is written, are in one part.
    """
    keys = [_key(request) for request in requests]
    order = sorted(range(len(rows)), key=lambda place: keys[place]) if any(keys) else range(len(rows))
    parts = [Part()]
    written, characters, last_key = 0, 0, ""
    for place in order:
        row, key = rows[place], keys[place]
        if not key or key != last_key:
            if written == MOST_ROWS or (written and characters + len(row.payload) > MOST_CHARACTERS):
                parts.append(Part())
                written, characters = 0, 0
            written, characters, last_key = written + 1, characters + len(row.payload), key
        parts[-1].rows.append(row)
        parts[-1].requests.append(requests[place])
        parts[-1].places.append(place)
    return parts


def in_batches(wakes: Sequence[Wake]) -> Iterator[Sequence[Wake]]:
    """Wake-ups in batches that Redis accepts, or Postgres records as not pushed, within their short deadlines."""
    for first in range(0, len(wakes), MOST_ROWS):
        yield wakes[first : first + MOST_ROWS]


def _key(request: Request) -> str:
    """The same key for requests of which only one is written; "" for a request that equals no other."""
    return request.unique.key(request.job_type, request.equal_by.now) if request.unique is not None else ""
