"""The schemas that compose files and Kubernetes manifests must fit; each check returns its complaints.

An unknown field is a complaint everywhere: Kubernetes itself drops them silently.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
from jsonschema.protocols import Validator  # type: ignore[import-untyped]
from jsonschema.validators import Draft7Validator  # type: ignore[import-untyped]

from devkit.crd import complaints, validator

VENDOR = Path(__file__).with_name("vendor")
KUBERNETES = "1.33"
OPERATOR = {
    "ServiceMonitor": "servicemonitors.yaml",
    "PodMonitor": "podmonitors.yaml",
    "ScrapeConfig": "scrapeconfigs.yaml.gz",
    "PrometheusRule": "prometheusrules.yaml",
    "AlertmanagerConfig": "alertmanagerconfigs.yaml.gz",
}


@cache
def _compose() -> Validator:
    return Draft7Validator(json.loads((VENDOR / "compose-spec.json").read_text()))


def compose(document: dict[str, Any]) -> list[str]:
    """By the schema of the compose specification."""
    return complaints(_compose(), document)


@cache
def _custom(kind: str) -> Validator:
    return validator(VENDOR / OPERATOR[kind])


def kubernetes(document: dict[str, Any]) -> list[str]:
    """By the strict schemas of Kubernetes, or by the Prometheus operator's of its own kinds."""
    if document["kind"] in OPERATOR:
        return complaints(_custom(document["kind"]), document)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []
