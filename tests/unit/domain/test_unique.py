"""Which jobs are equal."""

from typing import Any

import pytest

from jobledger import BaseJob, ConfigurationError, JobDefinitionError, Unique
from jobledger.registry import registry


def test_jobs_are_equal_if_the_fields_are() -> None:
    unique = Unique("source", "day")

    key = unique.key("Import", {"source": "crm", "day": "2026-01-31", "rows": 5})
    assert key == unique.key("Import", {"rows": 7, "day": "2026-01-31", "source": "crm"})
    assert key.startswith("Import:")
    for other in ({"source": "erp", "day": "2026-01-31"}, {"source": "crm", "day": None}, {"source": "crm"}):
        assert key != unique.key("Import", other)
    assert key != unique.key("Export", {"source": "crm", "day": "2026-01-31"})


def test_without_fields_the_whole_payload_counts() -> None:
    unique = Unique()

    assert unique.key("Import", {"a": 1, "b": {"c": 2, "d": 3}}) == unique.key(
        "Import", {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert unique.key("Import", {"a": 1}) != unique.key("Import", {"a": 1, "b": 2})


def test_it_may_say_for_how_long() -> None:
    assert Unique().within_seconds is None
    assert Unique(during="unfinished").within_seconds is None
    assert Unique(within="1h").within_seconds == 3600


@pytest.mark.parametrize(
    ("fields", "spoken"),
    [
        (("a", "a"), {}),
        (("",), {}),
        ((5,), {}),
        ((), {"during": "ever"}),
        ((), {"during": "unfinished", "within": "1h"}),
        ((), {"within": "soon"}),
        ((), {"within": 0}),
        ((), {"on_conflict": "ignore"}),
    ],
)
def test_what_makes_no_sense_is_refused(fields: Any, spoken: Any) -> None:
    with pytest.raises(ConfigurationError, match="Unique"):
        Unique(*fields, **spoken)


@pytest.mark.parametrize(
    ("unique", "said"),
    [
        (Unique("source", "day"), r"day is no parameter of _perform, which has source, rows"),
        (Unique("rest"), "rest is no parameter"),
        ("source", r"Sample\.unique='source': say Unique"),
        (Unique, "say Unique"),
    ],
)
def test_a_class_is_unique_by_its_own_parameters(unique: Any, said: str) -> None:
    def _perform(self: BaseJob, source: str, rows: int = 5, **rest: Any) -> None: ...

    with pytest.raises(JobDefinitionError, match=said):
        type("Sample", (BaseJob,), {"_perform": _perform, "unique": unique})
    assert "Sample" not in [one.job_type for one in registry]


@pytest.mark.parametrize("unique", [Unique(), Unique("source", "target")])
def test_a_class_that_takes_any_object_is_unique_by_whatever_it_says(unique: Unique) -> None:
    def _perform(self: BaseJob) -> None: ...

    type("Sample", (BaseJob,), {"_perform": _perform, "unique": unique})
    registry.forget("Sample")
