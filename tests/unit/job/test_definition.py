"""What happens when a job class is defined."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from jobledger import BaseJob, JobDefinitionError, OptionError, Retry
from jobledger.registry import registry


@pytest.fixture(autouse=True)
def _forget_new_classes() -> Iterator[None]:
    before = {job_class.job_type for job_class in registry}
    yield
    for job_class in registry:
        if job_class.job_type not in before:
            registry.forget(job_class.job_type)


def define(name: str = "Sample", **attributes: Any) -> type[BaseJob]:
    def _perform(self: BaseJob) -> None: ...

    return type(name, (BaseJob,), {"_perform": _perform, **attributes})


def test_a_class_is_registered_by_its_name() -> None:
    defined = define("Sample")

    assert registry.lookup("Sample") is defined
    assert defined.job_type == "Sample"


def test_a_class_may_say_another_type() -> None:
    defined = define(job_type="etl.import")

    assert registry.lookup("etl.import") is defined


def test_a_subclass_has_a_type_of_its_own() -> None:
    parent = define("Sample", job_type="etl.import")
    child = type("NightlyImport", (parent,), {})

    assert child.job_type == "NightlyImport"
    assert registry.lookup("etl.import") is parent


def test_two_classes_of_one_type_are_refused() -> None:
    define("Sample", job_type="etl")

    with pytest.raises(JobDefinitionError, match="Two job classes have the type 'etl'"):
        define("Export", job_type="etl")


def test_a_common_ancestor_without_perform_is_no_job() -> None:
    ancestor = type("Ancestor", (BaseJob,), {"queue": "etl"})

    assert ancestor not in list(registry)
    with pytest.raises(JobDefinitionError, match="Ancestor has no _perform"):
        ancestor.dispatch()


def test_options_of_the_class_are_read_when_it_is_defined() -> None:
    options = define(queue="etl", timeout="15m", retry=Retry(3), title="Load {table}").options

    assert (options.queue, options.timeout_seconds, options.max_attempts) == ("etl", 900, 3)
    assert options.title == "Load {table}"


def test_options_are_inherited() -> None:
    ancestor = type("Ancestor", (BaseJob,), {"queue": "etl", "timeout": timedelta(minutes=1), "retry": Retry(4)})

    class Heir(ancestor):  # type: ignore[misc, valid-type]
        def _perform(self) -> None: ...

    assert (Heir.options.queue, Heir.options.timeout_seconds, Heir.options.max_attempts) == ("etl", 60, 4)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"queue": "not a name"}, "Sample: queue="),
        ({"timeout": "soon"}, "Sample: timeout="),
        ({"timeout": 0}, "Sample: timeout="),
        ({"retry": 3}, r"Sample\.retry=3"),
        ({"retry": Retry}, r"Sample\.retry="),
        ({"title": 5}, "Sample: title="),
        ({"priority": "high"}, "Sample: priority="),
        ({"priority": True}, "Sample: priority="),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_when_the_class_is_defined(
    attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises(JobDefinitionError, match=said):
        define(**attributes)
    assert "Sample" not in [job_class.job_type for job_class in registry]


def test_a_parameter_called_like_an_option_is_refused_when_the_class_is_defined() -> None:
    def _perform(self: BaseJob, queue: str) -> None: ...

    with pytest.raises(JobDefinitionError, match=r"Sample\._perform: a parameter may not be called 'queue'"):
        define(_perform=_perform)


@pytest.mark.parametrize("what", ["session", "payload", "job_id", "attempt", "log"])
def test_what_belongs_to_a_run_is_not_there_outside_of_one(what: str) -> None:
    job = define()()

    with pytest.raises(RuntimeError, match="Sample is not running"):
        getattr(job, what)


def test_options_spoken_before_a_dispatch_are_checked_at_once() -> None:
    with pytest.raises(OptionError, match="timeout="):
        define().set(timeout="soon")
    with pytest.raises(OptionError, match="no option 'prio'"):
        define().set(prio=1)


def test_a_retry_of_a_class_that_was_defined_with_options_spoken_stays_its_own() -> None:
    defined = define(queue="etl")

    defined.set(queue="low", after=uuid4())

    assert defined.options.queue == "etl"
    assert defined.options.after == ()


@pytest.mark.parametrize(("asked", "taken"), [(0, 1), (11, 10)])
def test_a_priority_out_of_range_is_brought_into_it_with_a_warning(asked: int, taken: int) -> None:
    with pytest.warns(
        UserWarning, match=rf"Sample\.priority={asked} is not within 1 to 10: {taken} is taken"
    ) as warned:
        defined = define(priority=asked)

    assert defined.options.priority == taken
    assert [one.filename for one in warned] == [__file__]


def test_a_priority_out_of_range_that_is_spoken_is_brought_into_it_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    define().set(priority=99)

    assert "the nearest priority is taken" in caplog.text
    caplog.clear()
    define().set(priority=10).set(queue="low")
    assert caplog.text == ""
