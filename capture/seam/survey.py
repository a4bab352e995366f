"""Which MoE layers a model has: those that can be counted, and those that can't, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moescope.capture.seam.coverage import RoutedLayer, is_capture_source, routed_runner, routed_source
from moescope.capture.seam.placement import read_placement
from moescope.capture.seam.slots import SinkBuffers
from moescope.capture.wire import Placement, UncoveredLayer


@dataclass(frozen=True, slots=True)
class MoeSurvey:
    """The MoE layers of a model: those that can be counted and those that can't, in rising order of layer."""

    routed: tuple[RoutedLayer, ...]
    uncovered: tuple[UncoveredLayer, ...]
    placement: Placement | None


def survey_model(model: torch.nn.Module, vllm_config: Any) -> MoeSurvey:
    """Find the MoE layers of the target model. A draft model is a module of its own and is not searched."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    whole_model_reason = _unsupported(vllm_config)
    routed: dict[int, RoutedLayer] = {}
    uncovered: dict[int, str] = {}
    sinks = SinkBuffers()
    module: Any
    for module in model.modules():
        if isinstance(module, MoERunner):
            found = routed_runner(module, sinks, vllm_config)
        elif is_capture_source(module):
            found = routed_source(module)
        else:
            continue
        layer = int(module.layer_id)
        if whole_model_reason is not None:
            found = whole_model_reason
        elif layer in routed:
            found = "two MoE blocks share this layer's index"
            del routed[layer]
        if isinstance(found, str):
            uncovered[layer] = found
        elif layer not in uncovered:
            routed[layer] = found
    covered = tuple(routed[layer] for layer in sorted(routed))
    return MoeSurvey(
        routed=covered,
        uncovered=tuple(UncoveredLayer(layer, uncovered[layer]) for layer in sorted(uncovered)),
        placement=read_placement(covered, vllm_config),
    )


def _unsupported(vllm_config: Any) -> str | None:
    """Why no layer of this server can be counted exactly; None if layers can."""
    parallel = vllm_config.parallel_config
    if parallel.use_ubatching:
        return "micro-batching (DBO) is not supported: the callback sees slices of a step"
    if parallel.prefill_context_parallel_size > 1:
        return "prefill context parallelism is not supported: rows are split over its ranks"
    drafts = vllm_config.speculative_config
    if drafts is not None and (
        drafts.method == "ngram_gpu" or getattr(drafts, "enable_adaptive_verification", False)
    ):
        # vLLM drops drafts after a step has begun: padding would count, and tokens get phases of other rows.
        return "drafts that vLLM cuts within a step (ngram_gpu, adaptive verification) are not supported"
    return None
