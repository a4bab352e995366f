"""The manifests for Kubernetes: generated ones are up to date, and all of them fit together."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from moescope.dashboards import build
from moescope.dashboards.kubernetes import FOLDER, manifests
from moescope.service.cli.commands import command_line
from moescope.service.settings import Settings
from tests.deploy.manifests import containers, one


def test_rules_and_boards_are_what_the_code_makes() -> None:
    same = all((FOLDER / name).read_text() == text for name, text in manifests().items())
    assert same, "run: python -m moescope.dashboards.kubernetes"


def test_the_boards_are_the_codes_whatever_their_files_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it doesn't matter whether the files or the manifests are written first."""
    monkeypatch.setattr(build, "BOARDS", build.BOARDS[:1])
    boards = json.loads(manifests()["boards.json"])["data"]
    assert boards == build.documents()
    assert len(boards) == 1


def test_the_config_map_fits_and_holds_the_boards() -> None:
    boards = one("ConfigMap", "moescope-boards")["data"]
    assert len(boards) == 5
    assert {json.loads(text)["uid"] + ".json" for text in boards.values()} == set(boards)
    assert len((FOLDER / "boards.json").read_bytes()) < 1024 * 1024  # the most that a ConfigMap may have


def test_the_service_monitor_finds_the_service_and_the_service_the_pods() -> None:
    service, workload, monitor = one("Service"), one("StatefulSet"), one("ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert workload["spec"]["selector"]["matchLabels"] == labels
    port = containers(workload)["moescope"]["ports"][0]
    assert (port["name"], port["containerPort"]) == ("http", Settings().port)


def test_containers_are_hardened_and_mounts_have_volumes() -> None:
    for workload in (one("StatefulSet"), one("Deployment", "vllm")):
        pod = workload["spec"]["template"]["spec"]
        claims = workload["spec"].get("volumeClaimTemplates", [])
        volumes = {item["name"] for item in pod["volumes"]} | {item["metadata"]["name"] for item in claims}
        for item in containers(workload).values():
            assert {mount["name"] for mount in item["volumeMounts"]} <= volumes
        security = containers(workload)["moescope"]["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_arguments_are_flags_that_exist() -> None:
    text = CliRunner(env={"COLUMNS": "200"}).invoke(command_line(), ["serve", "--help"]).output
    for workload in (one("StatefulSet"), one("Deployment", "vllm")):
        args = containers(workload)["moescope"]["args"]
        assert args[0] == "serve"
        for flag in args:
            assert not flag.startswith("--") or flag in text


def test_counts_outlive_the_container_of_the_service() -> None:
    for workload in (one("StatefulSet"), one("Deployment", "vllm")):
        service = containers(workload)["moescope"]
        folder = service["args"][service["args"].index("--store") + 1]
        [mount] = [item for item in service["volumeMounts"] if item["mountPath"] == folder]
        pod = workload["spec"]["template"]["spec"]
        kept = {item["metadata"]["name"] for item in workload["spec"].get("volumeClaimTemplates", [])}
        kept |= {item["name"] for item in pod["volumes"] if "emptyDir" in item}
        assert mount["name"] in kept
