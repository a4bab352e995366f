"""The manifests for Kubernetes, as they are read."""

from __future__ import annotations

from typing import Any

import yaml

from moescope.dashboards.kubernetes import FOLDER

DOCUMENTS: list[dict[str, Any]] = [
    document
    for path in sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("*.json")])
    for document in yaml.safe_load_all(path.read_text())
]


def one(kind: str, name: str = "moescope") -> dict[str, Any]:
    """The only manifest of this kind and name."""
    (found,) = [item for item in DOCUMENTS if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def containers(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A workload's containers by name, with those that start first."""
    pod = workload["spec"]["template"]["spec"]
    return {item["name"]: item for item in (*pod.get("initContainers", ()), *pod["containers"])}
