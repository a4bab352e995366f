"""The schemas that compose files and Kubernetes manifests must fit; each check returns its complaints.

An unknown field is a complaint everywhere: Kubernetes itself drops them silently.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema.protocols import Validator
from jsonschema.validators import Draft7Validator, Draft202012Validator

VENDOR = Path(__file__).with_name("vendor")
KUBERNETES = "1.33"
OPERATOR = {
    "ServiceMonitor": "servicemonitors.yaml",
    "PodMonitor": "podmonitors.yaml",
    "ScrapeConfig": "scrapeconfigs.yaml.gz",
    "PrometheusRule": "prometheusrules.yaml",
    "AlertmanagerConfig": "alertmanagerconfigs.yaml.gz",
}


class _Loader(yaml.CSafeLoader):
    """Reads ``=``, which is a word of YAML 1.1, as the text that it is in the schemas."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


def _complaints(validator: Validator, document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@cache
def _compose() -> Validator:
    return Draft7Validator(json.loads((VENDOR / "compose-spec.json").read_text()))


def compose(document: dict[str, Any]) -> list[str]:
    """By the schema of the compose specification."""
    return _complaints(_compose(), document)


def closed(schema: Any) -> Any:
    """A structural schema in which objects have no other fields than those that it names."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    return made


@cache
def _custom(kind: str) -> Validator:
    path = VENDOR / OPERATOR[kind]
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    resource = yaml.load(text, _Loader)
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in resource["spec"]["versions"]]
    made = closed(schema)
    made["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, of any kind
    return Draft202012Validator(made)


def kubernetes(document: dict[str, Any]) -> list[str]:
    """By the strict schemas of Kubernetes, or by the Prometheus operator's of its own kinds."""
    if document["kind"] in OPERATOR:
        return _complaints(_custom(document["kind"]), document)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []
