"""Writes rules and boards as manifests for Kubernetes: ``python -m moescope.dashboards.kubernetes``.

They are a PrometheusRule (for the Prometheus operator) and a ConfigMap (for Grafana's dashboard sidecar).
``--runbook-url`` and ``--grafana-url`` make the links of notifications absolute.
Both are JSON, which is YAML too, so nothing has to be quoted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from moescope.dashboards import alert_rules
from moescope.dashboards.alert_rules import Links
from moescope.dashboards.build import documents

_HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = _HERE.parent / "deploy" / "kubernetes"
_LABELS: Final = {"app.kubernetes.io/name": "moescope"}


def manifests(links: Links | None = None) -> dict[str, str]:
    """File name to text; the boards are made from the code, so it doesn't matter when they were built."""
    return {
        "prometheusrule.json": _text(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PrometheusRule",
                "metadata": {"name": "moescope", "labels": _LABELS},
                "spec": {"groups": _groups(links or Links())},
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


def _groups(links: Links) -> list[dict[str, Any]]:
    files = sorted(path for path in (_HERE / "rules").glob("*.yml") if path.name != alert_rules.FILE)
    recorded = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [*recorded, *alert_rules.groups(links)]


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Write the manifests."""
    parser = alert_rules.arguments()
    parser.description = __doc__
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the manifests")
    chosen = parser.parse_args(words)
    try:
        made = manifests(alert_rules.links_of(chosen))
    except ValueError as error:
        parser.error(str(error))
    for name, text in made.items():
        (chosen.out / name).write_text(text)


if __name__ == "__main__":
    main()
