"""The manifests for Kubernetes: generated ones are up to date, and all of them fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moescope.dashboards import build
from moescope.dashboards.kubernetes import FOLDER, manifests
from moescope.service.settings import Settings
from tests.deploy.manifests import DOCUMENTS, containers, one

ROOT = Path(__file__).parents[2]


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


def test_helm_lints_the_chart_and_what_is_for_people_without_helm_is_what_it_makes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "devkit.chart", "check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_names_fit_together() -> None:
    """Files that are applied together name the same things; the others are left out."""
    monitor, service, workload = one("ServiceMonitor"), one("Service"), one("StatefulSet")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    sidecar = one("Deployment", "moescope-vllm")["spec"]["template"]["metadata"]["labels"]
    assert one("PodMonitor")["spec"]["selector"]["matchLabels"].items() <= sidecar.items()
    tokens = [item for item in DOCUMENTS if item["metadata"]["name"] == "moescope-tokens"]
    assert len(tokens) == 2
    assert tokens[0]["data"] == tokens[1]["data"]
    for item in (workload, one("Deployment", "moescope-vllm")):
        port = containers(item)["moescope"]["ports"][0]
        assert (port["name"], port["containerPort"]) == ("moescope", Settings().port)


def test_no_label_of_a_release_is_left() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert "Helm" not in text
    assert ".svc" not in text
