"""A dispatch of many rows in parts, in one transaction: each part is one statement, and has its own time.

So the time that a dispatch may take grows with its size, a Postgres that stands still is noticed after the time of one
part, and no statement becomes larger than a part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.dispatch.admission import Request
from jobledger.domain.records import NewJob, Wake

MOST_ROWS: Final = 1000
MOST_CHARACTERS: Final = 4 * 1024 * 1024
"""Of the payloads of one part, unless one payload alone has more."""

SECONDS_PER_ROW: Final = 0.005
"""Thirty times what a row takes on a small server, indexes and commit included."""

CHARACTERS_PER_SECOND: Final = 2 * 1024 * 1024


@dataclass(slots=True)
class Part:
    """Some rows of a dispatch.

    Attributes:
        places: where they stand in the dispatch.
    """

    rows: list[NewJob] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it may take. One row has what a single dispatch has."""
        characters = sum(len(row.payload) for row in self.rows)
        return DISPATCH_SECONDS + (len(self.rows) - 1) * SECONDS_PER_ROW + characters // CHARACTERS_PER_SECOND


def in_parts(rows: Sequence[NewJob], requests: Sequence[Request]) -> list[Part]:
    """Split a dispatch.

    Rows with unique keys are in the order of their keys, so that two dispatches which have some in common do not wait
    for each other; and those of one key, of which one is written, are in one part.
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
    """Wake-ups in numbers that Redis takes, and Postgres notes as not taken, in their short times."""
    for first in range(0, len(wakes), MOST_ROWS):
        yield wakes[first : first + MOST_ROWS]


def _key(request: Request) -> str:
    """Equal for requests of which one is written; "" for one that is unlike all others."""
    return request.unique.key(request.job_type, request.equal_by.now) if request.unique is not None else ""
