"""The lines of docs/stacks.md: pods that Kubernetes takes, and how they are merged into others' examples.

`python -m devkit.stacks` checks them by those projects' own definitions; the projects are not here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from devkit.crd import closed
from devkit.stacks import blocks, main, merged
from moescope.capture.settings.environment import CaptureSettings
from tests.deploy.chart import templates
from tests.deploy.schemas import kubernetes

BLOCKS = blocks()


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """All parts of a block that have containers."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pods(item)
    elif isinstance(value, list):
        for item in value:
            yield from pods(item)


FOUND = [(name, number, pod) for name, block in BLOCKS.items() for number, pod in enumerate(pods(block))]


def test_each_stack_has_its_lines() -> None:
    assert {name for name, _, _ in FOUND} == {
        *("pod", "leaderworkerset", "llminferenceservice", "rayservice", "dynamographdeployment")
    }
    assert len(FOUND) == 6
    assert {"env", "production-stack", "skypilot"} <= set(BLOCKS)


@pytest.mark.parametrize(("name", "number", "pod"), FOUND)
def test_the_lines_are_a_pod(name: str, number: int, pod: dict[str, Any]) -> None:
    spec = copy.deepcopy(pod)
    (container,) = spec["containers"]
    container["image"] = "vllm/vllm-openai:v0.26.0"
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    assert not kubernetes(document)
    env = {item["name"]: item.get("value", "") for item in container["env"]}
    settings = CaptureSettings.from_environment({**env, "MOESCOPE_TOKEN_FILE": ""})
    assert (settings.endpoint, settings.pool) == ("http://moescope.serving.svc:9890", env["MOESCOPE_POOL"])
    mounts = {item["name"]: item["mountPath"] for item in container["volumeMounts"]}
    assert {item["name"] for item in spec["volumes"]} == set(mounts)
    assert env["PYTHONPATH"] == mounts["moescope-plugin"]
    assert env["MOESCOPE_TOKEN_FILE"] == f"{mounts['moescope-token']}/token"


def test_the_commands_are_those_of_the_chart() -> None:
    for _, _, pod in FOUND:
        assert str(pod["initContainers"][0]["command"]).replace("'", "") in templates("example")["example"]


def test_lines_are_merged_by_name() -> None:
    base = {"a": [{"name": "x", "v": 1}, {"name": "y", "v": 2}], "b": {"c": 1}, "d": [1, 2]}
    lines = {"a": [{"name": "y", "w": [3]}, {"name": "z"}], "b": {"e": 2}, "d": [3]}
    assert merged(base, lines) == {
        "a": [{"name": "y", "v": 2, "w": [3]}, {"name": "z"}, {"name": "x", "v": 1}],
        "b": {"c": 1, "e": 2},
        "d": [3],
    }


def test_fields_that_a_definition_does_not_name_are_refused_but_in_free_ones() -> None:
    free = {"type": "object", "properties": {"x": {}}, "x-kubernetes-preserve-unknown-fields": True}
    named = {"type": "object", "properties": {"x": {"type": "string"}}}
    made = closed(
        {"type": "object", "properties": {"free": free, "items": {"type": "array", "items": named}}}
    )
    assert made["additionalProperties"] is False
    assert "additionalProperties" not in made["properties"]["free"]
    assert made["properties"]["items"]["items"]["additionalProperties"] is False


def test_without_a_folder_it_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "FOLDER" in capsys.readouterr().err
