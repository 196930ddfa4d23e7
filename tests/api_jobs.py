"""Jobs that the API may create; loaded together with `sample_jobs`, whose jobs it may not."""

from datetime import date, time
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from jobledger import BaseJob, JobRefused, Retry, Unique


class EmptyTable(BaseJob):
    """Says that it emptied a table.

    It only says so.
    """

    queue = "low"
    title = "Empty {schema}.{table_name}"
    api_dispatchable = True

    def _perform(self, schema: Annotated[str, Field(examples=["public"])], table_name: str) -> str:
        return f"Table {schema}.{table_name} emptied successfully"

    @classmethod
    def check_payload(cls, schema: str, table_name: str) -> None:
        if schema == "secret":
            raise JobRefused(f"{schema}.{table_name} may not be emptied.")


class Address(BaseModel):
    """Where to send it."""

    street: str
    number: Annotated[int, Field(ge=1)]


class SendReport(BaseJob):
    """Sends a report."""

    job_type = "reports.send"
    api_dispatchable = True

    def _perform(
        self,
        day: date,
        to: list[Address],
        kind: Literal["short", "long"] = "short",
        copies: int = 1,
        note: str | None = None,
    ) -> int:
        return copies * len(to)


class AnyObject(BaseJob):
    """Takes any JSON object and gives it back."""

    api_dispatchable = True

    def _perform(self) -> object:
        return self.payload


class FailsOnce(BaseJob):
    api_dispatchable = True
    retry = Retry(2, backoff="fixed", base=0.5, jitter=False)

    def _perform(self) -> str:
        if self.attempt == 1:
            raise ValueError("not yet")
        self.progress(3, 3, "done")
        return "second time lucky"


class Shift(BaseJob):
    """Takes types that are strict, a time of day with its zone, and whatever else is said."""

    api_dispatchable = True

    def _perform(
        self, id: Annotated[UUID, Field(strict=True)], begins: time, limit: int = 5, **rest: object
    ) -> dict[str, object]:
        return {"id": id, "begins": begins, **rest}

    @classmethod
    def check_payload(cls, **payload: object) -> None: ...


class UniqueImport(BaseJob):
    """Imports a source, once at a time."""

    unique = Unique("source")
    api_dispatchable = True

    def _perform(self, source: str) -> None: ...


class UniqueStrictImport(UniqueImport):
    """The same, and says so if it is there already."""

    unique = Unique("source", on_conflict="error")
    api_dispatchable = True
