"""What the error that ended an attempt means for its job."""

import psycopg2
import pytest
from psycopg2 import errorcodes, errors
from sqlalchemy.exc import OperationalError

from jobledger.status import Outcome
from jobledger.worker.outcome import classify


def raised(code: str) -> psycopg2.Error:
    """An error with this SQLSTATE, as the driver raises it."""
    error = errors.lookup(code)("…")
    error.__setstate__({"pgcode": code})
    return error


@pytest.mark.parametrize(
    "code",
    [errorcodes.DISK_FULL, errorcodes.OUT_OF_MEMORY, errorcodes.TOO_MANY_CONNECTIONS, errorcodes.IO_ERROR],
)
def test_a_server_without_room_is_not_the_jobs_fault(code: str) -> None:
    for error in (raised(code), OperationalError("INSERT …", {}, raised(code))):
        assert classify(error, None, connection_is_gone=False) is Outcome.LOST


@pytest.mark.parametrize("code", [errorcodes.UNIQUE_VIOLATION, errorcodes.CONFIGURATION_LIMIT_EXCEEDED])
def test_what_a_statement_does_wrong_is(code: str) -> None:
    assert classify(raised(code), None, connection_is_gone=False) is Outcome.ERROR
