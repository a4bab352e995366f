"""Resource definitions of Kubernetes as schemas that refuse unknown fields, which Kubernetes itself drops."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonschema.protocols import Validator  # type: ignore[import-untyped]
from jsonschema.validators import Draft202012Validator  # type: ignore[import-untyped]


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]
    """Reads ``=``, which is a word of YAML 1.1, as the text that it is in the schemas."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


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


def validator(definition: Path, version: str | None = None) -> Validator:
    """Of the file of a CustomResourceDefinition, gzipped or not; without a version it must have only one."""
    content = definition.read_bytes()
    text = gzip.decompress(content) if definition.suffix == ".gz" else content
    versions = yaml.load(text, _Loader)["spec"]["versions"]  # noqa: S506 a safe loader with one more word
    (schema,) = [item["schema"]["openAPIV3Schema"] for item in versions if version in (None, item["name"])]
    made = closed(schema)
    made["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, of any kind
    return Draft202012Validator(made)


def complaints(checking: Validator, document: dict[str, Any]) -> list[str]:
    """Where a document doesn't fit, and why."""
    return [f"{error.json_path}: {error.message}" for error in checking.iter_errors(document)]
