"""What bare RQ is known to lose and to double, the checker finds by the same witnesses."""

from pathlib import Path

import pytest

import control
from control import FAULTS, QUICK, Finding
from witnesses import Kind

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    out = tmp_path_factory.mktemp("control")
    return {finding.name: finding for finding in control.run(out, QUICK, patience=8)}


@pytest.mark.parametrize("name", QUICK)
def test_a_known_fault_of_bare_rq_is_found(findings: dict[str, Finding], name: str) -> None:
    assert findings[name].ok, findings[name]
    assert findings[name].first


def test_nothing_but_the_known_is_found(findings: dict[str, Finding]) -> None:
    """Else it could be the control that is broken, not RQ."""
    assert set(findings["popped"].found) == {Kind.LOST}
    assert set(findings["flushed"].found) == {Kind.LOST}
    assert findings["popped"].found[Kind.LOST] == 2
    assert findings["flushed"].found[Kind.LOST] == 20
    assert set(findings["reply"].found) <= {Kind.DOUBLED, Kind.STARTED_TWICE, Kind.TOO_MANY_STARTS}


def test_every_fault_says_what_it_is() -> None:
    assert all(fault.__doc__ for fault, _ in FAULTS.values())


def test_without_a_fault_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(bench: control.Bench, _: float) -> None:
        bench.worker(*control.QUEUES)
        with bench.fault("none"):
            bench.enqueue("quick-0")
        bench.settle(1)

    monkeypatch.setitem(FAULTS, "harmless", (harmless, Kind.LOST))
    (finding,) = control.run(tmp_path, ["harmless"])
    assert not finding.found
    assert not finding.ok
