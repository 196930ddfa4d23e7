"""What the error that ended an attempt means for its job."""

from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from psycopg2 import errorcodes, errors
from sqlalchemy.exc import OperationalError

from jobledger.domain.status import Outcome
from jobledger.worker.outcome import classify

OURS = SimpleNamespace(closed=0)
ANOTHER = SimpleNamespace(closed=0)


def raised(code: str, over: Any) -> psycopg2.Error:
    """An error with this SQLSTATE, as the driver raises it."""
    kind = type("Raised", (errors.lookup(code),), {"pgcode": code, "cursor": SimpleNamespace(connection=over)})
    return kind("…")  # type: ignore[no-any-return]


@pytest.mark.parametrize("code", [errorcodes.DISK_FULL, errorcodes.IO_ERROR])
def test_a_server_without_room_is_not_the_jobs_fault(code: str) -> None:
    for error in (raised(code, OURS), OperationalError("INSERT …", {}, raised(code, OURS))):
        assert classify(error, None, OURS) is Outcome.LOST


def test_another_server_is_the_jobs_business() -> None:
    assert classify(raised(errorcodes.DISK_FULL, ANOTHER), None, OURS) is Outcome.ERROR


@pytest.mark.parametrize("code", [errorcodes.UNIQUE_VIOLATION, errorcodes.OUT_OF_MEMORY])
def test_what_a_statement_does_wrong_is(code: str) -> None:
    assert classify(raised(code, OURS), None, OURS) is Outcome.ERROR
