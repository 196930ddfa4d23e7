"""Job types and their classes."""

import sys
from pathlib import Path

import pytest

from jobledger import ConfigurationError, JobDefinitionError, UnknownJobType
from jobledger.registry import Registry, load_job_modules


class One: ...


class Other: ...


def test_a_class_is_found_by_its_type() -> None:
    registry = Registry()

    registry.register("import", One)

    assert registry.lookup("import") is One


def test_two_classes_of_one_type_are_refused_with_both_names() -> None:
    registry = Registry()
    registry.register("import", One)

    with pytest.raises(JobDefinitionError, match=r"'import'.*test_registry\.One and .*test_registry\.Other"):
        registry.register("import", Other)
    assert registry.lookup("import") is One


def test_the_same_class_defined_anew_takes_the_place_of_the_old_one() -> None:
    """As a reloaded module does."""
    registry = Registry()
    registry.register("import", One)
    again = type("One", (), {"__module__": One.__module__, "__qualname__": One.__qualname__})

    registry.register("import", again)

    assert registry.lookup("import") is again


def test_an_unknown_type_is_refused_with_the_names_of_the_known_ones() -> None:
    registry = Registry()
    registry.register("load", One)
    registry.register("import", Other)

    with pytest.raises(UnknownJobType, match=r"'export'.*known: import, load.*JOBLEDGER_JOB_MODULES"):
        registry.lookup("export")


def test_classes_come_in_the_order_of_their_types() -> None:
    registry = Registry()
    registry.register("load", One)
    registry.register("import", Other)

    assert list(registry) == [Other, One]


def test_a_module_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigurationError, match="JOBLEDGER_JOB_MODULES: 'no_such_module' cannot be imported"):
        load_job_modules(["no_such_module"])


def test_a_module_that_raises_is_named_with_what_it_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_at_import.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    with pytest.raises(ConfigurationError, match=r"'raises_at_import'.*ZeroDivisionError") as refusal:
        load_job_modules(["raises_at_import"])
    assert isinstance(refusal.value.__cause__, ZeroDivisionError)
