"""One MoE layer in a window: what was counted, and what of it is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.live.producers import ProducerSpan
from moescope.service.measures.arrays import FloatArray
from moescope.service.windows import law
from moescope.service.windows.stack import Stack


@dataclass(frozen=True, slots=True)
class LayerWindow:
    """One MoE layer in the window.

    Attributes:
        shape: its id, experts and top-k.
        dp_ranks: C DP ranks whose tokens were seen here, or that computed none, rising.
        counts: slots per logical expert, over the DP ranks, int64 [num_experts].
        slots: slots per DP rank, int64 [C].
        rows: tokens seen, int64 [C].
        ep_slots: slots per EP rank, float64 [R]; only meaningful without ``ep_reason``.
        unplaced: slots of which the EP rank isn't known.
        ep_reason: why the load of the EP ranks isn't known, or None.
        estimated: of the slots in ``ep_slots``, how many are an even split over copies of their expert on
            several EP ranks: these are an estimate.
        unseen: DP ranks that computed tokens, none of which was seen here, though the layer is covered.
        uncovered: DP rank to the reason why its tokens can't be seen here.
        partial: DP ranks of whose tokens some were seen, and it isn't known that these are all.
        doubts: DP rank to the reason why its tokens may not all be here, of those in ``unseen`` or
            ``partial`` of which one is known.
        unphased: in the window of one phase, DP ranks that are left out, to their tokens of unknown phase.
        phase_reason: why the phases of these are not known; None: there are none.
        broken: DP ranks that are in the counts, to why their rows are not the tokens that they computed.
    """

    shape: MoeLayer
    dp_ranks: tuple[int, ...]
    counts: Int64Array
    slots: Int64Array
    rows: Int64Array
    ep_slots: FloatArray
    unplaced: int
    ep_reason: str | None
    unseen: tuple[int, ...]
    uncovered: dict[int, str]
    partial: tuple[int, ...] = ()
    doubts: Mapping[int, str] = field(default_factory=dict)
    unphased: Mapping[int, int] = field(default_factory=dict)
    phase_reason: str | None = None
    broken: Mapping[int, str] = field(default_factory=dict)
    estimated: int = 0

    @property
    def ep_estimate(self) -> str | None:
        """Why the loads of EP ranks are an estimate; None: they are exact."""
        if not self.estimated:
            return None
        return (
            f"up to {self.estimated} slots went to experts with copies on several EP ranks and are split "
            "evenly: their worker doesn't count which copy they went to"
        )

    @property
    def not_conserved(self) -> str | None:
        """Why the rows that were seen are not the tokens that were computed; None: they are."""
        return law.told(self.broken)

    @property
    def missing(self) -> tuple[int, ...]:
        """DP ranks with tokens that are not in the counts, or of which it isn't known whether all are."""
        nowhere = {*self.unseen, *self.uncovered, *self.unphased}
        if nowhere:
            nowhere.difference_update(self.dp_ranks)
        return tuple(sorted(nowhere | set(self.partial)))

    @property
    def why_partial(self) -> str | None:
        """Why the counts are not those of all tokens, or None."""
        missing = self.missing
        if not missing:
            return None
        told = {**dict.fromkeys(self.unphased, self.phase_reason), **self.uncovered, **self.doubts}
        why = next((f" ({told[rank]})" for rank in missing if told.get(rank)), "")
        return f"partial: the tokens of DP ranks {list(missing)} are not seen in this layer{why}"

    @property
    def not_seen(self) -> str | None:
        """Why there are no counts at all though tokens were computed, or None."""
        if not self.missing or self.rows.any():
            return None
        if self.unphased:
            return self.phase_reason
        if self.uncovered:
            return f"not covered: {next(iter(self.uncovered.values()))}"
        ranks = [rank for rank in self.missing if rank in self.unseen]
        why = next((self.doubts[rank] for rank in ranks if rank in self.doubts), None)
        told = why or "the layer's router reported none"
        return f"not seen: DP ranks {ranks} computed tokens, {told}"


@dataclass(frozen=True, slots=True)
class Reasons:
    """Why what a window has is not all, or not known.

    Attributes:
        uncovered: layer to DP rank to why its tokens can't be seen there.
        doubts: DP rank to layer to why its tokens may not all be there.
        broken: DP rank to layer to why its rows are not the tokens that it computed.
        placement: why a worker can't tell the placement of the experts, or None.
        sizes: why the loads of ranks can't be compared in the window, or None.
    """

    uncovered: Mapping[int, dict[int, str]]
    doubts: Mapping[int, Mapping[int, str]]
    broken: Mapping[int, Mapping[int, str]]
    placement: str | None
    sizes: str | None = None


def layers_of(stack: Stack, ids: list[int], ep_size: int, why: Reasons) -> tuple[LayerWindow, ...]:
    """All layers; ``ids`` are the DP ranks of the stack, in its order."""
    covering = stack.present & ~stack.lost
    offsets = stack.layout.offsets.tolist()
    everywhere: list[bool] = np.all(covering, axis=0).tolist()
    anywhere: list[bool] = np.any(stack.lost | stack.partial, axis=0).tolist()
    everybody, rows_by_layer = tuple(ids), np.ascontiguousarray(stack.rows.T)
    slots_by_layer = np.ascontiguousarray(stack.slots.T)
    doubts, broken = _some(why.doubts), _some(why.broken)
    found = []
    for i, shape in enumerate(stack.layout.layers):
        slots, rows, shown = slots_by_layer[i], rows_by_layer[i], everybody
        if not everywhere[i]:
            kept = np.flatnonzero(covering[:, i])
            slots, rows, shown = slots[kept], rows[kept], tuple(ids[at] for at in kept)
        reasons = why.uncovered.get(shape.layer, {})
        unseen = [ids[at] for at in np.flatnonzero(stack.lost[:, i])] if anywhere[i] else []
        partial = [ids[at] for at in np.flatnonzero(stack.partial[:, i])] if anywhere[i] else []
        found.append(
            LayerWindow(
                shape=shape,
                dp_ranks=shown,
                counts=stack.counts[offsets[i] : offsets[i + 1]],
                slots=slots,
                rows=rows,
                ep_slots=stack.ep_slots[i],
                unplaced=stack.unplaced[i],
                estimated=stack.estimated[i],
                ep_reason=why.sizes
                or _ep_reason(ep_size, len(stack.ep_slots[i]), stack.unplaced[i], why.placement),
                unseen=tuple(rank for rank in unseen if rank not in reasons),
                uncovered=reasons,
                partial=tuple(partial),
                doubts=_of_layer(doubts, shape.layer, (*unseen, *partial)),
                broken=_of_layer(broken, shape.layer, shown),
            )
        )
    return tuple(found)


def _some(reasons: Mapping[int, Mapping[int, str]]) -> dict[int, Mapping[int, str]]:
    """Without the DP ranks that have none: almost always nothing is left, and each layer asks."""
    return {rank: of_layers for rank, of_layers in reasons.items() if of_layers}


def _of_layer(reasons: Mapping[int, Mapping[int, str]], layer: int, ranks: Iterable[int]) -> dict[int, str]:
    """Of a layer, the reasons of some DP ranks."""
    if not reasons:
        return {}
    return {rank: reasons[rank][layer] for rank in ranks if layer in reasons.get(rank, {})}


def uncovered_in(computed: Mapping[int, list[ProducerSpan]]) -> dict[int, dict[int, str]]:
    """Layer to DP rank to the reason why the tokens that the rank computed can't be seen there.

    Args:
        computed: DP ranks that computed tokens, to their producers.
    """
    found: dict[int, dict[int, str]] = {}
    for rank, members in computed.items():
        for entry in (entry for item in members for entry in item.producer.latest.not_counted):
            found.setdefault(entry.layer, {}).setdefault(rank, entry.reason)
    return found


def _ep_reason(ep_size: int, used: int, unplaced: int, told: str | None) -> str | None:
    """Why the loads of EP ranks are not known; ``used`` is one past the last EP rank that got slots."""
    if ep_size < used:
        return (
            f"frames of a former start with {used} EP ranks or more came in the window; there are {ep_size}"
        )
    if ep_size == 1:
        return "ep_size is 1: the experts are not spread over ranks"
    if unplaced:
        what = f"no placement was known for {unplaced} slots, so it is not known which ranks they went to"
        return what if told is None else f"{what}: {told}"
    return None
