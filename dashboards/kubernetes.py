"""Writes rules and boards as manifests for Kubernetes: ``python -m moescope.dashboards.kubernetes``.

They are a PrometheusRule (for the Prometheus operator) and a ConfigMap (for Grafana's dashboard sidecar).
Both are JSON, which is YAML too, so nothing has to be quoted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from moescope.dashboards.build import documents

_HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = _HERE.parent / "deploy" / "kubernetes"
_LABELS: Final = {"app.kubernetes.io/name": "moescope"}


def manifests() -> dict[str, str]:
    """File name to text; the boards are made from the code, so it doesn't matter when they were built."""
    return {
        "prometheusrule.json": _text(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PrometheusRule",
                "metadata": {"name": "moescope", "labels": _LABELS},
                "spec": {"groups": _groups()},
            }
        ),
        "boards.json": _text(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "moescope-boards", "labels": {**_LABELS, "grafana_dashboard": "1"}},
                "data": dict(sorted(documents().items())),
            }
        ),
    }


def _groups() -> list[dict[str, Any]]:
    files = sorted((_HERE / "rules").glob("*.yml"))
    return [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


if __name__ == "__main__":
    for name, text in manifests().items():
        (FOLDER / name).write_text(text)
