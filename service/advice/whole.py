"""One placement as it would be used: fitted on a whole window, or by no load at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moescope.service.advice.advise import (
    PlacementWish,
    UnanswerableError,
    ask,
    check_work,
    hosts_of,
    ranks_of,
)
from moescope.service.advice.evidence import LayerReasons, Windows, gather, not_there
from moescope.service.advice.placements import PlacementArrays, distinct, eplb, linear, round_robin
from moescope.service.live.producers import Deployment, ProducerSpan, heard_last
from moescope.service.live.state import LiveState
from moescope.service.windows.health import silent_stages
from moescope.service.windows.window import ModelWindow, merge_spans

ByLoad = Literal["eplb"]
Unloaded = Literal["linear", "round_robin"]
Policy = Literal["moescope", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A placement of all layers that can be placed.

    Attributes:
        window: that it is fitted on.
        layers: ids of the layers, in the order of the placement's rows.
        left_out: layer to the reason why it isn't placed.
        placement: where the copies are.
        stages: pipeline stages of the deployment.
        silent_stages: those that were asked for and of which no worker has reported, so that their layers
            aren't known.
        one_stage: whether only one stage's layers were asked for.
    """

    window: ModelWindow
    layers: tuple[int, ...]
    left_out: LayerReasons
    placement: PlacementArrays
    stages: int
    silent_stages: tuple[int, ...]
    one_stage: bool


def whole_placement(
    state: LiveState,
    deployment: Deployment,
    start: float | None,
    end: float | None,
    wish: PlacementWish,
    *,
    strategy: ByLoad | Unloaded,
    policy: Policy = "moescope",
    pp_rank: int | None = None,
) -> Whole:
    """One placement, fitted on the whole window.

    Args:
        strategy: ``eplb`` is by load, with the first number of redundant experts that is wished; the others
            need neither loads nor redundant experts, whatever the numbers of experts and ranks.
        policy: by load, whose: ours never puts two copies of one expert on a rank while there is room
            elsewhere, vLLM's may.
        pp_rank: the pipeline stage whose layers are wanted; None: those of all stages.

    Raises:
        UnanswerableError: see :func:`moescope.service.advice.advise.advise`; also when no layer can be
            placed, or the stage isn't there.
        StoreError: the archive can't be read.
    """
    spans = state.spans(deployment, start, end)
    stages = heard_last(item.producer for item in spans).pp_size
    silent = silent_stages([item.producer for item in spans])
    if pp_rank is not None:
        spans = _of_stage(spans, pp_rank)
    window = merge_spans(spans)
    ranks = ranks_of(wish, window.ep_size)
    if strategy == "eplb":
        layers, left_out, placement = _by_load(state, deployment, window, wish, ranks, policy)
    else:
        layers, left_out, placement = _unloaded(window, ranks, strategy)
    return Whole(
        window=window,
        layers=layers,
        left_out=left_out,
        placement=placement,
        stages=stages,
        silent_stages=silent if pp_rank is None else (),
        one_stage=pp_rank is not None,
    )


def _of_stage(spans: Sequence[ProducerSpan], pp_rank: int) -> list[ProducerSpan]:
    found = [item for item in spans if item.producer.latest.producer.pp_rank == pp_rank]
    if not found:
        known = sorted({item.producer.latest.producer.pp_rank for item in spans})
        raise UnanswerableError(
            "unknown-stage", f"No worker of pipeline stage {pp_rank} has reported: there are {known}."
        )
    return found


def _by_load(
    state: LiveState,
    deployment: Deployment,
    window: ModelWindow,
    wish: PlacementWish,
    ranks: int,
    policy: Policy,
) -> tuple[tuple[int, ...], LayerReasons, PlacementArrays]:
    evidence = gather(Windows(fit=window, pieces=(window,)), ranks, wish.min_tokens)
    question = ask(evidence, wish, ranks, hosts_of(state, deployment))
    if not evidence.layers:
        reason = next(iter(evidence.left_out.values()), "it has no layers")
        raise UnanswerableError("no-sample", f"There is nothing to fit on ({reason}): give a longer window.")
    place = distinct if policy == "moescope" else eplb
    placement = place(evidence.fit, question.redundant[0], question.groups, question.nodes, ranks)
    return evidence.layers, evidence.left_out, placement


def _unloaded(
    window: ModelWindow, ranks: int, strategy: Unloaded
) -> tuple[tuple[int, ...], LayerReasons, PlacementArrays]:
    """All layers with as many experts as most have, idle ones too: no load is needed for it."""
    if window.conflict is not None:
        raise UnanswerableError("conflict", f"It is not known whose layers these are: {window.conflict}.")
    shapes = [layer.shape for layer in window.layers]
    if not shapes:
        reason = next(iter(not_there(window).values()), "no worker counts any")
        raise UnanswerableError("no-layers", f"There are no layers to place ({reason}).")
    [(experts, _)] = Counter(shape.num_experts for shape in shapes).most_common(1)
    layers = tuple(shape.layer for shape in shapes if shape.num_experts == experts)
    check_work(len(layers), experts, ranks, (0,))
    left_out = not_there(window)
    for shape in shapes:
        if shape.num_experts != experts:
            left_out[shape.layer] = f"it has {shape.num_experts} experts, most layers {experts}"
    place = linear if strategy == "linear" else round_robin
    in_order = {layer: left_out[layer] for layer in sorted(left_out)}
    return layers, in_order, place(len(layers), experts, ranks)
