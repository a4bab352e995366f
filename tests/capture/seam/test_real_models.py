"""The survey of vLLM's own model classes: what the config says is what is found, and no alarm is false."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe.layer import MoERunner

from moescope.capture.seam.absence import find_absent
from moescope.capture.seam.config_layers import read_config
from moescope.capture.seam.decoder import decoder_layers, holds_no_experts, language_part
from moescope.capture.seam.survey import survey_model
from tests.capture.seam.tiny_models import MODELS, build, one_rank

ALONE = {"MiniCPM-MoE": "MiniCPMMoE", "JetMoE": "JetMoeParallelExperts"}
"""Models that route without a `MoERunner`, and by which class."""


@pytest.fixture(scope="module", autouse=True)
def _groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_rank(tmp_path_factory.mktemp("groups") / "store"):
        yield


@pytest.fixture(scope="module", params=MODELS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _groups: None
) -> tuple[str, torch.nn.Module, Any]:
    """A name, its model and vLLM's configuration."""
    return (request.param, *build(MODELS[request.param], tmp_path_factory.mktemp("model")))


def test_no_layer_of_a_supported_model_is_absent_and_those_found_are_those_of_the_config(
    made: tuple[str, torch.nn.Module, Any],
) -> None:
    name, model, vllm_config = made
    found, configured = survey_model(model, vllm_config), read_config(vllm_config)
    assert (found.absent, found.absent_unnamed) == ((), "")
    if configured.layers is not None:
        here = {layer.spec.layer for layer in found.routed} | {layer.layer for layer in found.uncovered}
        assert here == configured.layers
    runners = [module for module in model.modules() if isinstance(module, MoERunner)]
    assert bool(runners) == (
        configured.experts > 0 and name not in ALONE and configured.layers != frozenset()
    )


def test_what_routes_without_a_runner_is_uncovered_by_its_class(tmp_path: Path) -> None:
    for name, kind in ALONE.items():
        folder = tmp_path / name
        folder.mkdir()
        found = survey_model(*build(MODELS[name], folder))
        assert found.routed == ()
        assert [layer.layer for layer in found.uncovered] == [0, 1, 2, 3]
        assert all(layer.reason.startswith(f"{kind} routes by itself") for layer in found.uncovered)


def test_runners_that_vanish_leave_their_layers_absent(made: tuple[str, torch.nn.Module, Any]) -> None:
    # As if a new vLLM had a block of experts that nothing here knows: the config tells that it is missed.
    name, model, vllm_config = made
    configured = read_config(vllm_config)
    blocks = [
        (parent, attribute, child)
        for parent in model.modules()
        for attribute, child in parent.named_children()
        if isinstance(child, MoERunner)
    ]
    if not blocks:
        assert name in ALONE or not configured.layers
        return
    try:
        for parent, attribute, _ in blocks:
            setattr(parent, attribute, Opaque())
        absence = find_absent(language_part(model), (), configured, vllm_config)
        held = decoder_layers(language_part(model), configured.depth)
        assert {layer.layer for layer in absence.layers} == configured.layers
        assert len(held) == configured.depth
        assert not any(holds_no_experts(held[layer], configured.experts) for layer in configured.layers)
    finally:
        for parent, attribute, child in blocks:
            setattr(parent, attribute, child)


class Opaque(torch.nn.Module):
    """Holds experts in a way that nothing here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.everything = torch.nn.Parameter(torch.empty(8 * 64, 128, device="meta"))
