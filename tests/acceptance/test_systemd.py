"""deploy/systemd: what each unit promises, in systemd's own words."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import REPOSITORY
from jobledger import Settings
from jobledger.worker.leases import INTERRUPT_GRACE_SECONDS
from jobledger.worker.redis import STOPPING_PATIENCE_SECONDS
from jobledger.worker.takeover import HARD_STOP_SECONDS

UNITS = sorted((REPOSITORY / "deploy" / "systemd").iterdir())
DRAIN_SECONDS = Settings.model_fields["drain_seconds"].default
HARD_SECONDS = INTERRUPT_GRACE_SECONDS + HARD_STOP_SECONDS
"""What a job that reacts to nothing takes longer."""
HARDENING = {
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "RestrictSUIDSGID": "yes",
    "User": "jobledger",
}


def assignments(unit: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))


def test_there_is_a_unit_for_each_process() -> None:
    commands = {unit.name: assignments(unit)["ExecStart"].split()[1:] for unit in UNITS}

    assert commands == {
        "jobledger-api.service": ["-m", "jobledger", "api"],
        "jobledger-migrate.service": ["-m", "jobledger", "migrate"],
        "jobledger-scheduler.service": ["-m", "jobledger", "scheduler"],
        "jobledger-worker@.service": ["-m", "jobledger", "worker"],
    }


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_kills_the_right_way_and_is_shut_in(unit: Path) -> None:
    said = assignments(unit)

    # Only the worker itself gets the signal: its work-horse finishes the job.
    assert (said["KillMode"], said["KillSignal"]) == ("mixed", "SIGTERM")
    assert int(said["TimeoutStopSec"]) > DRAIN_SECONDS + HARD_SECONDS + 5
    assert int(said["TimeoutStopSec"]) > STOPPING_PATIENCE_SECONDS + 5 > DRAIN_SECONDS + HARD_SECONDS + 5
    assert {name: said.get(name) for name in HARDENING} == HARDENING
    assert said["EnvironmentFile"] == "/etc/jobledger/jobledger.env"
    assert "PASSWORD" not in unit.read_text().upper()
    if said.get("Type") == "oneshot":
        assert said["Restart"] == "on-failure"
    else:
        assert (said["Restart"], said["StartLimitIntervalSec"]) == ("always", "0")
        assert "jobledger-migrate.service" in said["After"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    copies = []
    for unit in UNITS:
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text().replace("/opt/jobledger/bin/python", sys.executable))

    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "jobledger" in line]  # other units are not ours

    assert (done.returncode, complaints) == (0, [])
