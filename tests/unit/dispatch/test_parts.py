"""How a dispatch of many rows is split, and how long each part may take."""

import json
import uuid
from itertools import pairwise
from typing import Any

import pytest

from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.dispatch import parts
from jobledger.dispatch.admission import Request
from jobledger.dispatch.parts import MOST_CHARACTERS, MOST_ROWS, in_parts
from jobledger.domain.options import Options
from jobledger.domain.records import NewJob
from jobledger.domain.unique import Unique


def split(payloads: list[Any], unique: Unique | None = None) -> list[list[int]]:
    """The places of the rows of each part."""
    return [one.places for one in in_parts(*_dispatch(payloads, unique))]


def _dispatch(payloads: list[Any], unique: Unique | None = None) -> tuple[list[NewJob], list[Request]]:
    requests = [Request("Import", json.dumps(one), Options(), has_on_failed=False, unique=unique) for one in payloads]
    rows = [
        NewJob(uuid.uuid4(), "Import", "default", one.payload, None, None, 60, 1, has_on_failed=False)
        for one in requests
    ]
    return rows, requests


def test_a_part_has_at_most_so_many_rows_in_their_order() -> None:
    assert split([{}] * MOST_ROWS) == [list(range(MOST_ROWS))]
    assert split([{}] * (2 * MOST_ROWS + 1)) == [
        list(range(MOST_ROWS)),
        list(range(MOST_ROWS, 2 * MOST_ROWS)),
        [2 * MOST_ROWS],
    ]


def test_and_so_much_of_payloads_unless_one_has_more() -> None:
    third = {"text": "x" * (MOST_CHARACTERS // 3)}
    whole = {"text": "x" * MOST_CHARACTERS}

    assert split([third] * 5) == [[0, 1], [2, 3], [4]]
    assert split([{}, whole, {}, {}]) == [[0], [1], [2, 3]]


def test_rows_with_keys_are_in_the_order_of_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_ROWS", 2)
    payloads = [{"n": number} for number in (5, 1, 5, 3, 1, 5, 4)]

    places = split(payloads, Unique("n"))
    keys = [[Unique("n").key("Import", payloads[place]) for place in part] for part in places]

    assert sorted(place for part in places for place in part) == list(range(7))
    assert [key for part in keys for key in part] == sorted(key for part in keys for key in part)
    assert [len(set(part)) for part in keys] == [2, 2]  # of each key one row is written
    assert all(not set(one) & set(other) for one, other in pairwise(keys))
    assert [place for part in places for place in part if payloads[place]["n"] == 5] == [0, 2, 5]


def test_the_time_of_a_part_grows_with_its_size() -> None:
    one, many, large = (
        in_parts(*_dispatch(payloads))[0].seconds for payloads in ([{}], [{}] * 1000, [{"x": "x" * 3 * 2**20}])
    )

    assert one == DISPATCH_SECONDS
    assert many > DISPATCH_SECONDS + 2
    assert large > DISPATCH_SECONDS
