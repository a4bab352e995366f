"""Which MoE layers a model has: those that can be counted, and those that can't, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from moescope.capture.seam.absence import Absence, find_absent
from moescope.capture.seam.bypasses import Bypasses, find_bypasses
from moescope.capture.seam.config_layers import read_config
from moescope.capture.seam.coverage import RoutedLayer, is_capture_source, routed_runner, routed_source
from moescope.capture.seam.decoder import language_part, layer_of_path, routing_modules
from moescope.capture.seam.features import (
    MOST_MICROBATCHES,
    microbatches,
    moe_class,
    runs_v2,
    ubatching_module,
)
from moescope.capture.seam.placement import read_placement
from moescope.capture.seam.slots import SinkBuffers, writes_in_place
from moescope.capture.wire import Placement, UncoveredLayer
from moescope.capture.wire.schema import MAX_LAYERS

MAX_REASON = 1024


@dataclass(frozen=True, slots=True)
class MoeSurvey:
    """The MoE layers of a model: those that can be counted and those that can't, in rising order of layer.

    Attributes:
        routed: the covered layers.
        uncovered: the layers that were found and can't be counted, with the reasons.
        placement: where the experts are, if they don't move; None: not known.
        absent: the layers that the model's config has and that were not found.
        absent_unnamed: that layers are absent, where it isn't known which; else empty.
        decoder_layers: how many decoder layers the model has, dense ones included; 0: not known.
        slower: why vLLM takes a slower kernel in layers that are observed; None if it doesn't.
        why_no_placement: why ``placement`` is None, unless there is none to tell: without expert parallelism,
            and under EPLB.
        look_again: finds the slot of a covered layer once more, as vLLM may have made its kernel anew.
        why_no_references: why ids must be counted before the next routing call, or None; to be asked once
            the slots have callbacks.
    """

    routed: tuple[RoutedLayer, ...]
    uncovered: tuple[UncoveredLayer, ...]
    placement: Placement | None
    absent: tuple[UncoveredLayer, ...] = ()
    absent_unnamed: str = ""
    decoder_layers: int = 0
    slower: str | None = None
    why_no_placement: str | None = None
    look_again: Callable[[RoutedLayer], RoutedLayer | str] = lambda layer: layer
    why_no_references: Callable[[], str | None] = lambda: None


def survey_model(model: nn.Module, vllm_config: Any, *, leave_fast_kernels: bool = False) -> MoeSurvey:
    """Find the MoE layers of the target model. A draft model is a module of its own and is not searched.

    A module that can't be looked into costs its own layer only, which is uncovered then.

    Args:
        model: the loaded model.
        vllm_config: vLLM's configuration.
        leave_fast_kernels: leave layers alone where a callback would make vLLM take a slower kernel.
    """
    bypasses = find_bypasses(model, vllm_config, leave_fast_kernels=leave_fast_kernels)
    search = _Search(vllm_config, bypasses)
    for path, module in model.named_modules():
        search.look_at(path, module)
    absence = _absence(search, model, vllm_config)
    covered = tuple(search.routed[layer] for layer in sorted(search.routed))
    placement, why_no_placement = _placement(covered, vllm_config)
    return MoeSurvey(
        routed=covered,
        uncovered=_listed(search.uncovered),
        placement=placement,
        absent=absence.layers,
        absent_unnamed="; ".join(filter(None, (*search.unplaced, absence.unnamed)))[:MAX_REASON],
        decoder_layers=_decoder_layers(vllm_config),
        slower=bypasses.slower if covered else None,
        why_no_placement=why_no_placement,
        look_again=search.look_again,
        why_no_references=partial(_why_no_references, covered, search.sinks, vllm_config),
    )


def _decoder_layers(vllm_config: Any) -> int:
    """The decoder layers of the model as its config counts them; 0 where it can't be told."""
    try:
        return min(MAX_LAYERS, max(0, read_config(vllm_config).depth))
    except Exception:  # noqa: BLE001 - layers are counted without it
        return 0


def _absence(search: _Search, model: nn.Module, vllm_config: Any) -> Absence:
    """Take what routes by itself into account, and compare what was found then with the config."""
    try:
        decoder, configured = language_part(model), read_config(vllm_config)
        for path, module in routing_modules(decoder, search.known, configured.experts):
            search.take_stray(path, module)
        return find_absent(decoder, search.layers, configured, vllm_config)
    except Exception as error:  # noqa: BLE001 - the layers that were found are counted all the same
        return Absence(unnamed=f"whether MoE layers are absent can't be told: {error!r}")


def _why_no_references(covered: Sequence[RoutedLayer], sinks: SinkBuffers, vllm_config: Any) -> str | None:
    """Why a reference to ids would show others once the pass is over: kernels write them to one place."""
    if sinks.shares:
        return "kernels of several layers write their ids to one place"
    if microbatches(vllm_config.parallel_config) > 1 and any(
        writes_in_place(layer.router) for layer in covered
    ):
        return "kernels write the ids of all microbatches of a step to one place"
    return None


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


class _Search:
    """What was found so far."""

    def __init__(self, vllm_config: Any, bypasses: Bypasses) -> None:
        self.routed: dict[int, RoutedLayer] = {}
        self.uncovered: dict[int, str] = {}
        self.unplaced: list[str] = []
        self.known: list[nn.Module] = []
        self._vllm_config = vllm_config
        self._bypasses = bypasses
        self._whole_model = _unsupported(vllm_config)
        self.sinks = SinkBuffers()
        self._moe_modules = moe_class()

    @property
    def layers(self) -> set[int]:
        """The layers found, covered or not."""
        return {*self.routed, *self.uncovered}

    def look_at(self, path: str, module: Any) -> None:
        """Take a module into account if vLLM knows it as one that routes."""
        if not (isinstance(module, self._moe_modules) or is_capture_source(module)):
            return
        look = self._look_of(module)
        self.known.append(module)
        try:
            layer = int(module.layer_id)
        except Exception as error:  # noqa: BLE001 - a module of somebody else
            self._refuse(layer_of_path(path), f"{_name(module)} can't say which layer it is: {error!r}")
            return
        self._take(layer, self._judged(layer, module, look))

    def look_again(self, layer: RoutedLayer) -> RoutedLayer | str:
        """A covered layer with the slot that it has now, or why it can't be counted."""
        try:
            return self._look_of(layer.module)(layer.module)
        except Exception as error:  # noqa: BLE001 - as where it was found
            return f"{_name(layer.module)} is not as it was: {error!r}"[:MAX_REASON]

    def take_stray(self, path: str, module: nn.Module) -> None:
        """Take a module into account that routes by itself, unless its layer was found already."""
        layer = layer_of_path(path)
        if layer not in self.layers:
            self._refuse(
                layer, f"{_name(module)} routes by itself, without vLLM's MoERunner or a source of its ids"
            )

    def _look_of(self, module: Any) -> Callable[[Any], RoutedLayer | str]:
        if isinstance(module, self._moe_modules):
            return partial(routed_runner, sinks=self.sinks, vllm_config=self._vllm_config)
        return routed_source

    def _judged(self, layer: int, module: Any, look: Callable[[Any], RoutedLayer | str]) -> RoutedLayer | str:
        return self._whole_model or self._bypasses.reason(layer) or _usable(look, module)

    def _take(self, layer: int, found: RoutedLayer | str) -> None:
        if layer in self.uncovered:
            return
        if layer in self.routed:
            del self.routed[layer]
            self.uncovered[layer] = "two MoE blocks share this layer's index"
        elif isinstance(found, str):
            self.uncovered[layer] = found[:MAX_REASON]
        else:
            self.routed[layer] = found

    def _refuse(self, layer: int | None, reason: str) -> None:
        """Note that a layer can't be counted; what has no layer's number is told without one."""
        if layer is not None:
            self._take(layer, reason)
        elif reason not in self.unplaced:
            self.unplaced.append(reason)


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _listed(reasons: dict[int, str]) -> tuple[UncoveredLayer, ...]:
    return tuple(UncoveredLayer(layer, reasons[layer]) for layer in sorted(reasons))


def _unsupported(vllm_config: Any) -> str | None:
    """Why no layer of this server can be counted exactly; None if layers can."""
    parallel = vllm_config.parallel_config
    parts = microbatches(parallel)
    if parts > MOST_MICROBATCHES:
        return f"{parts} microbatches (DBO) are not supported: a step may have {MOST_MICROBATCHES}"
    if parts > 1:
        try:
            ubatching_module()
        except LookupError as error:
            return f"microbatches (DBO) can't be told apart: {error}"
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return (
            "prefill context parallelism is not supported: its ranks compute other chunks of a prompt each, "
            "and short requests twice, and vLLM's forward context doesn't say which rows are which"
        )
    drafts = vllm_config.speculative_config
    if drafts is not None and (
        getattr(drafts, "enable_adaptive_verification", False)
        or (drafts.method == "ngram_gpu" and not runs_v2(vllm_config))
    ):
        # vLLM drops drafts after a step has begun: padding would count, and tokens get phases of other rows.
        # Runner V2 computes all drafts of ngram_gpu, and V1 those that its kernel found only.
        return (
            "drafts that vLLM cuts within a step (adaptive verification; ngram_gpu with model runner V1) are "
            "not supported"
        )
    return None
