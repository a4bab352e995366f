"""The MoE layers that a model's config has and that were not found in the loaded model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from moescope.capture.seam.config_layers import ConfiguredExperts
from moescope.capture.seam.decoder import decoder_layers, describe, holds_no_experts, is_placeholder
from moescope.capture.wire import UncoveredLayer


@dataclass(frozen=True, slots=True)
class Absence:
    """What the config has and the model doesn't show.

    Attributes:
        layers: the absent layers of this pipeline stage, in rising order, with the reasons.
        unnamed: that layers are absent, where the config doesn't say which; else empty.
    """

    layers: tuple[UncoveredLayer, ...] = ()
    unnamed: str = ""


def _encodes_only(decoder: nn.Module, vllm_config: Any) -> bool:
    """Whether vLLM loaded no language model, because this instance only encodes images for others."""
    return getattr(vllm_config, "is_mm_encoder_only", False) is True or is_placeholder(decoder)


def find_absent(
    decoder: nn.Module, found: Collection[int], configured: ConfiguredExperts, vllm_config: Any
) -> Absence:
    """Compare what was found with the config; a layer that surely is dense is never absent.

    Args:
        decoder: the language part of the model.
        found: the layers that were found, covered or not.
        configured: what the config says.
        vllm_config: vLLM's configuration, for the layers of this pipeline stage.
    """
    if not configured.experts or _encodes_only(decoder, vllm_config):
        return Absence()
    held = decoder_layers(decoder, configured.depth)
    stage = sorted(held) if held else _stage(vllm_config, configured.depth)
    left = [
        layer
        for layer in stage
        if layer not in found and not (layer in held and holds_no_experts(held[layer], configured.experts))
    ]
    if configured.layers is None:
        return Absence(unnamed=_unnamed(configured.experts, left) if left and not found else "")
    said = f"by the model's config ({configured.rule}) an MoE layer of up to {configured.experts} experts"
    return Absence(
        tuple(
            UncoveredLayer(layer, f"{said}; nothing that routes was found in it{_classes(held, layer)}")
            for layer in left
            if layer in configured.layers
        )
    )


def _unnamed(experts: int, layers: list[int]) -> str:
    return (
        f"the model's config has {experts} experts and doesn't say in which layers; no MoE layer was found "
        f"among layers {layers[0]} to {layers[-1]}"
    )


def _classes(held: dict[int, nn.Module], layer: int) -> str:
    return f" ({describe(held[layer])})" if layer in held else ""


def _stage(vllm_config: Any, depth: int) -> list[int]:
    """The layers of this pipeline stage, where the model has no list of them."""
    parallel, model_config = vllm_config.parallel_config, vllm_config.model_config
    if getattr(parallel, "pipeline_parallel_size", 1) == 1:
        return list(range(depth))
    start, end = model_config.get_layers_start_end_indices(parallel)
    return list(range(start, end))
