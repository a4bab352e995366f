"""What Helm makes of the chart for each file of values in ``deploy/helm/values``, and for others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "moescope"
VALUES = tuple(sorted((ROOT / "deploy" / "helm" / "values").glob("*.yaml")))


def render(files: Sequence[Path], chart: Path = CHART) -> dict[str, dict[str, Any]]:
    """By file of values: ``templates`` by name, or ``error``. Helm runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "devkit.chart", "render", str(chart), *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    made: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return made


@cache
def _all() -> dict[str, dict[str, Any]]:
    return render(VALUES)


def templates(name: str) -> dict[str, str]:
    """Template to text, for a file of values such as ``shared``."""
    made = _all()[str(ROOT / "deploy" / "helm" / "values" / f"{name}.yaml")]
    assert "error" not in made, made["error"]
    texts: dict[str, str] = made["templates"]
    return texts


@cache
def documents(name: str) -> tuple[dict[str, Any], ...]:
    """All manifests of a file of values."""
    return tuple(
        document
        for template, text in templates(name).items()
        if template != "NOTES"
        for document in yaml.safe_load_all(text)
        if document is not None
    )


def kinds(name: str) -> list[str]:
    """The kinds of these manifests, sorted."""
    return sorted(document["kind"] for document in documents(name))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    """The only manifest of this kind."""
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def pod(name: str, kind: str = "Deployment") -> dict[str, Any]:
    """The pod's specification of the only workload of this kind."""
    spec: dict[str, Any] = of_kind(name, kind)["spec"]["template"]["spec"]
    return spec


def service_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The container of moescope's service in a pod, wherever it is."""
    (found,) = [
        item for item in (*spec.get("initContainers", ()), *spec["containers"]) if item["name"] == "moescope"
    ]
    container: dict[str, Any] = found
    return container


def pods(name: str) -> list[dict[str, Any]]:
    """The specifications of all pods."""
    found = [
        document["spec"] for document in documents(name) if document["kind"] in ("Deployment", "StatefulSet")
    ]
    return [spec["template"]["spec"] for spec in found]


def vllm_pod(name: str) -> dict[str, Any]:
    """The specification of the example's pod."""
    (found,) = [spec for spec in pods(name) if spec["containers"][0]["name"] == "vllm"]
    return found


def service_pods() -> list[tuple[str, dict[str, Any]]]:
    """Each pod that the service runs in, with its file of values."""
    return [
        (path.stem, spec)
        for path in VALUES
        for spec in pods(path.stem)
        if any(item["name"] == "moescope" for item in (*spec["containers"], *spec.get("initContainers", ())))
    ]
