"""Which MoE layers a model has: those that can be counted, and those that can't, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from moescope.capture.seam.coverage import RoutedLayer, is_capture_source, routed_runner, routed_source
from moescope.capture.seam.features import moe_class, uses_microbatches
from moescope.capture.seam.placement import read_placement
from moescope.capture.seam.slots import SinkBuffers
from moescope.capture.wire import Placement, UncoveredLayer

MAX_REASON = 512


@dataclass(frozen=True, slots=True)
class MoeSurvey:
    """The MoE layers of a model: those that can be counted and those that can't, in rising order of layer.

    ``why_no_placement`` says why ``placement`` is None, unless there is none to tell: without expert
    parallelism, and under EPLB.
    """

    routed: tuple[RoutedLayer, ...]
    uncovered: tuple[UncoveredLayer, ...]
    placement: Placement | None
    why_no_placement: str | None = None


def survey_model(model: torch.nn.Module, vllm_config: Any) -> MoeSurvey:
    """Find the MoE layers of the target model. A draft model is a module of its own and is not searched."""
    moe_modules = moe_class()
    whole_model_reason = _unsupported(vllm_config)
    routed: dict[int, RoutedLayer] = {}
    uncovered: dict[int, str] = {}
    sinks = SinkBuffers()
    module: Any
    for module in model.modules():
        look: Callable[[Any], RoutedLayer | str]
        if isinstance(module, moe_modules):
            look = partial(routed_runner, sinks=sinks, vllm_config=vllm_config)
        elif is_capture_source(module):
            look = routed_source
        else:
            continue
        layer = int(module.layer_id)
        found = _usable(look, module)
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
    placement, why_no_placement = _placement(covered, vllm_config)
    return MoeSurvey(
        routed=covered,
        uncovered=tuple(UncoveredLayer(layer, uncovered[layer]) for layer in sorted(uncovered)),
        placement=placement,
        why_no_placement=why_no_placement,
    )


def _usable(look: Callable[[Any], RoutedLayer | str], module: Any) -> RoutedLayer | str:
    """A module's layer, or why it can't be counted; its slot is tried, and left as it was."""
    try:
        found = look(module)
        if not isinstance(found, str):
            earlier = found.router.capture_fn
            found.router.set_capture_fn(_ignore)
            found.router.set_capture_fn(earlier)
    except Exception as error:  # noqa: BLE001 - the other layers can be counted
        return f"{type(module).__name__} is not as moescope knows it: {error!r}"[:MAX_REASON]
    return found


def _ignore(topk_ids: torch.Tensor) -> None:
    """A callback that does nothing."""


def _placement(covered: Sequence[RoutedLayer], vllm_config: Any) -> tuple[Placement | None, str | None]:
    """Where the experts are, or why that can't be told."""
    try:
        return read_placement(covered, vllm_config), None
    except Exception as error:  # noqa: BLE001 - counts don't need it
        return None, f"where vLLM placed the experts can't be read: {error!r}"


def _unsupported(vllm_config: Any) -> str | None:
    """Why no layer of this server can be counted exactly; None if layers can."""
    parallel = vllm_config.parallel_config
    if uses_microbatches(parallel):
        return "micro-batching (DBO) is not supported: the callback sees slices of a step"
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return "prefill context parallelism is not supported: rows are split over its ranks"
    drafts = vllm_config.speculative_config
    if drafts is not None and (
        drafts.method == "ngram_gpu" or getattr(drafts, "enable_adaptive_verification", False)
    ):
        # vLLM drops drafts after a step has begun: padding would count, and tokens get phases of other rows.
        return "drafts that vLLM cuts within a step (ngram_gpu, adaptive verification) are not supported"
    return None
