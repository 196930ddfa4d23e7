"""deploy/kubernetes: what the manifests promise."""

from typing import Any

import pytest
import yaml

from harness import REPOSITORY
from jobledger import Settings
from jobledger.worker.leases import INTERRUPT_GRACE_SECONDS
from jobledger.worker.takeover import HARD_STOP_SECONDS
from unrun import command_problem

MANIFESTS = sorted((REPOSITORY / "deploy" / "kubernetes").iterdir())


def pod_of(manifest: Any) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_pod_has_longer_than_its_drain_and_is_started_again(path: Any) -> None:
    pod = pod_of(yaml.safe_load(path.read_text()))
    said = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    drain = float(said["JOBLEDGER_DRAIN_SECONDS"])

    assert drain == Settings.model_fields["drain_seconds"].default
    assert pod["terminationGracePeriodSeconds"] > drain + INTERRUPT_GRACE_SECONDS + HARD_STOP_SECONDS + 5
    assert pod["restartPolicy"] == "Always"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_command_is_in_exec_form_and_exists(path: Any) -> None:
    pod = pod_of(yaml.safe_load(path.read_text()))
    containers = [*pod["initContainers"], *pod["containers"]]
    commands = [one["command"] for one in containers]
    commands += [
        one[probe]["exec"]["command"] for one in pod["containers"] for probe in ("livenessProbe", "readinessProbe")
    ]

    assert [command_problem(command) for command in commands] == [None] * len(commands)
    assert len(commands) == 4


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_what_restarts_a_container_asks_no_server(path: Any) -> None:
    for one in pod_of(yaml.safe_load(path.read_text()))["containers"]:
        assert one["livenessProbe"]["exec"]["command"][-1] == "--alive"
        assert "--alive" not in one["readinessProbe"]["exec"]["command"]
