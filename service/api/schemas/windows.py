"""From a merged window to the parts of answers that several routes share."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from moescope.capture.wire import MoeLayer
from moescope.service.api.params.query import Bounds, check_dp_rank, check_known, choose
from moescope.service.api.schemas.common import Absent, Span, Uncovered, Window
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.weights import WeightsWish
from moescope.service.live.parts import REMEDY, Part, other_parts
from moescope.service.live.producers import Deployment, ProducerState, heard_last
from moescope.service.live.state import LiveState
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.series import merge_series
from moescope.service.windows.weights import changed_within
from moescope.service.windows.window import ModelWindow


def read_window(
    state: LiveState,
    server: str | None,
    model: str | None,
    bounds: Bounds,
    dp_rank: int | None = None,
    phase: Phase | None = None,
    pool: str | None = None,
) -> ModelWindow:
    """The merged window of the deployment that is meant, of one DP rank or of all, of a phase or of both.

    Raises:
        ProblemError: it isn't clear which deployment is meant, or the DP rank isn't known.
    """
    spans = state.spans(choose(state, server, model, pool), bounds.start, bounds.end)
    if dp_rank is not None:
        check_dp_rank(dp_rank, (item.producer for item in spans))
    return merge_spans_of_phase(spans, phase, dp_rank)


def read_series(
    state: LiveState,
    server: str | None,
    model: str | None,
    bounds: Bounds,
    instants: Sequence[float],
    dp_rank: int | None = None,
    phase: Phase | None = None,
    pool: str | None = None,
) -> tuple[ModelWindow, Iterator[ModelWindow]]:
    """The merged window, and those between neighbours of rising instants that cut it (none without instants).

    All are from one look at the totals, so the parts add up to the whole. They are merged when asked for.

    Raises:
        ProblemError: see :func:`read_window`.
    """
    inner = instants[1:-1]
    asked = (bounds.start, *inner, bounds.end)
    whole, parts = state.whole_and_parts(choose(state, server, model, pool), asked)
    if dp_rank is not None:
        check_dp_rank(dp_rank, (item.producer for item in whole))
    return (
        merge_spans_of_phase(whole, phase, dp_rank),
        merge_series(parts, phase, dp_rank),
    )


def layers_now(state: LiveState, deployment: Deployment) -> dict[int, MoeLayer]:
    """The layers that the workers of a deployment count now, by id; no totals are read for it."""
    mine = (item.latest for item in state.producers(deployment))
    return {layer.layer: layer for latest in mine for layer in latest.counted.layout.layers}


def pick_layers(window: ModelWindow, wanted: list[int] | None) -> list[int]:
    """Indices into ``window.layers`` of the layers wanted, all when none is named.

    Raises:
        ProblemError: a layer isn't known (uncovered and absent ones are known, and have no index).
    """
    index = {layer.shape.layer: i for i, layer in enumerate(window.layers)}
    if not wanted:
        return list(index.values())
    check_known("layer", wanted, known_layers(window))
    return [index[layer] for layer in sorted(set(wanted)) if layer in index]


def known_layers(window: ModelWindow) -> list[int]:
    """All layers that somebody has said a word of: counted, uncovered and absent ones; rising."""
    counted = (layer.shape.layer for layer in window.layers)
    absent = (layer for layer in window.absent if layer is not None)
    return sorted({*counted, *window.uncovered, *absent})


def window_out(window: ModelWindow, bounds: Bounds) -> Window:
    """What was asked and what was used."""
    used = window.used
    return Window(
        start=bounds.start,
        end=bounds.end,
        used_start=Span(earliest=used.start_earliest, latest=used.start_latest),
        used_end=Span(earliest=used.end_earliest, latest=used.end_latest),
        truncated=used.truncated,
        weights=words_of(bounds.moved, window.weights),
    )


def words_of(*said: str | None) -> str | None:
    """All that is said of a window's weights, each thing once; None: nothing is."""
    return "; ".join(dict.fromkeys(filter(None, said))) or None


def bounds_of_weights(state: LiveState, deployment: Deployment, bounds: Bounds, wish: WeightsWish) -> Bounds:
    """The window from the last change of the deployment's weights on, unless all are wanted.

    Raises:
        StoreError: the archive can't be read.
    """
    at = None
    if wish is WeightsWish.LATEST:
        at = changed_within(state, deployment, bounds.start, bounds.end)
    if at is None:
        return bounds
    word = "the model's weights were changed then, and nothing before is taken; weights=all takes all"
    return replace(bounds, start=at, moved=f"begins at {at:.3f}: {word}")


def partial_of(state: LiveState, window: ModelWindow, dp_rank: int | None = None) -> str | None:
    """Why a window shows a part of its deployment only; None: it has all DP ranks, or the one asked for."""
    absent = window.absent_dp_ranks
    if not absent or dp_rank is not None:
        return None
    others = other_parts(state.producers()).get((window.server, window.model), ())
    return partial_text(window.dp_size, absent, window.reporting, others)


def partial_now(state: LiveState, deployment: Deployment) -> str | None:
    """Why a deployment is a part at present, or None: all its DP ranks report."""
    known = state.producers()
    members = [item for item in known if item.latest.producer.key[:2] == deployment]
    return partial_of_members(members, other_parts(known).get(deployment, ()))


def partial_of_members(members: Sequence[ProducerState], others: Sequence[Part]) -> str | None:
    """Why a deployment is a part at present, or None.

    Args:
        members: its producers, one at least.
        others: other names that have DP ranks which it lacks.
    """
    reporting = {item.latest.producer.dp_rank for item in members}
    alive = {item.latest.producer.dp_rank for item in members if not item.stale and item.gone is None}
    dp_size = heard_last(members).dp_size
    absent = sorted(set(range(dp_size)) - (alive or reporting))
    return partial_text(dp_size, absent, reporting, others) if absent else None


def partial_text(
    dp_size: int, absent: Sequence[int], reporting: Container[int], others: Sequence[Part]
) -> str:
    """Why numbers are of a part of a deployment.

    Args:
        dp_size: DP ranks that it should have.
        absent: those that are not in the numbers, one at least.
        reporting: those that ever reported.
        others: other names that have some of them.
    """
    never = [rank for rank in absent if rank not in reporting]
    silent = [rank for rank in absent if rank in reporting]
    said = ([f"{never} never reported"] if never else []) + ([f"{silent} fell silent"] if silent else [])
    text = f"a part: of {dp_size} DP ranks {' and '.join(said)}"
    return f"{text}; {'; '.join(map(str, others))}: {REMEDY}" if others else text


def partial_over_stages(ranks: str | None, silent: Sequence[int]) -> str | None:
    """Why an answer about layers is of a part of a deployment, or None.

    Args:
        ranks: why it has not all DP ranks, or None.
        silent: pipeline stages of which no worker has reported.
    """
    if not silent:
        return ranks
    stages = f"no worker of pipeline stages {list(silent)} has reported, so their layers are missing"
    return stages if ranks is None else f"{ranks}; {stages}"


def uncovered_out(window: ModelWindow) -> list[Uncovered]:
    """Layers that no DP rank can see."""
    return [Uncovered(layer=layer, reason=reason) for layer, reason in window.uncovered.items()]


def absent_out(window: ModelWindow) -> list[Absent]:
    """Layers that the model's config has and that were not found."""
    return [Absent(layer=layer, reason=reason) for layer, reason in window.absent.items()]
