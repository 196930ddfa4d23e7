"""What may be said of limits and rates, and which jobs share slots."""

from typing import Any

import pytest

from jobledger import BaseJob, ConfigurationError, JobDefinitionError, Limit, OptionError, Rate
from jobledger.domain.limits import AppliedLimit
from jobledger.domain.status import SlotKind
from jobledger.registry import registry


def test_a_key_names_fields_of_the_payload() -> None:
    limit = Limit(3, key="import:{source}:{day}")

    assert limit.of("Import", {"source": "crm", "day": 5, "rows": 1}) == AppliedLimit(SlotKind.LIMIT, "import:crm:5", 3)
    assert limit.of("Import", {"source": None, "day": [1, "a"]}).key == 'import:null:[1,"a"]'
    assert Limit(1, key="all {{of them}}").of("Import", {}).key == "all {of them}"


def test_without_a_key_the_jobs_of_a_type_share_their_slots() -> None:
    assert Limit(1).of("Import", {"source": "crm"}).key == "Import"
    assert Rate(100, per="1m").of("Import", {}) == AppliedLimit(SlotKind.RATE, "Import", 100, 60.0)


@pytest.mark.parametrize("most", [0, -1, True, 1.5, "3", None, 10**9])
def test_a_number_of_slots_that_makes_no_sense_is_refused(most: Any) -> None:
    with pytest.raises(ConfigurationError, match="whole number from 1 to 1000000"):
        Limit(most)
    with pytest.raises(ConfigurationError, match="whole number from 1 to 1000"):
        Rate(most, per="1m")


@pytest.mark.parametrize("key", ["", "{", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>5}", 5, "x" * 300])
def test_a_key_that_makes_no_sense_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="key="):
        Limit(1, key=key)
    with pytest.raises(ConfigurationError, match="key="):
        Rate(1, per="1s", key=key)


@pytest.mark.parametrize("per", [0, "soon", -1, None])
def test_a_time_that_makes_no_sense_is_refused(per: Any) -> None:
    with pytest.raises(ConfigurationError, match="per="):
        Rate(1, per=per)


def test_a_payload_without_the_field_or_with_a_long_one_is_refused() -> None:
    limit = Limit(1, key="import:{source}")

    with pytest.raises(OptionError, match="the payload has no 'source'"):
        limit.of("Import", {"day": 1})
    with pytest.raises(OptionError, match="becomes 307 characters long"):
        limit.of("Import", {"source": "x" * 300})


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({"limit": Limit(1, key="{day}")}, r"limit: day is no parameter of _perform, which has source"),
        ({"rate": Rate(1, per="1s", key="{day}")}, r"rate: day is no parameter"),
        ({"limit": 5}, r"limit=5: say Limit\(…\)"),
        ({"rate": Limit(1)}, r"rate=.*: say Rate\(…\)"),
    ],
)
def test_a_class_whose_limits_do_not_fit_is_refused(said: dict[str, Any], refused: str) -> None:
    def perform(self: BaseJob, source: str) -> None: ...

    with pytest.raises(JobDefinitionError, match=refused):
        type("Unfit", (BaseJob,), {"_perform": perform, **said})


def test_a_class_that_takes_any_payload_may_name_any_field() -> None:
    class Anything(BaseJob):
        limit = Limit(1, key="import:{source}")

        def _perform(self) -> None: ...

    registry.forget("Anything")
    assert Anything.limit.of("Anything", {"source": "crm"}).key == "import:crm"
