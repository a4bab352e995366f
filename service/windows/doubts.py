"""Workers that don't count in a window, so that their DP rank's tokens may not be in the counts.

A worker that never reported, whose capture was disabled, or that fell silent while others of its DP rank went
on: what it would have counted is not zero, it is not known.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.wire import Producer
from moescope.service.counts.layers import Layout
from moescope.service.counts.rank_work import RankWork, work_of
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan, ProducerState, heard_last, within_sizes
from moescope.service.windows.stack import BoolArray

Place = tuple[int, int]
"""(PP rank, TP rank) of a worker of a DP rank."""


@dataclass(frozen=True, slots=True)
class RankDoubt:
    """What is doubtful about one DP rank in a window.

    Attributes:
        silent: workers that don't count, to the reason.
        blind: layers that some worker doesn't cover though there are counts of them, to its reason.
        reason: why the tokens of the DP rank aren't known at all, or None.
    """

    silent: Mapping[Place, str] = field(default_factory=dict)
    blind: Mapping[int, str] = field(default_factory=dict)
    reason: str | None = None

    def counts(self, item: ProducerSpan) -> bool:
        """Whether a worker counts."""
        return _place(item.producer.latest.producer) not in self.silent

    def of_layers(self, layout: Layout, stages: Mapping[int, int]) -> dict[int, str]:
        """Layers that are in doubt, to the reason.

        Args:
            layout: all layers.
            stages: layer to the PP rank that has it.
        """
        if not self.silent and not self.blind and self.reason is None:
            return {}
        by_stage = {pp_rank: why for (pp_rank, _), why in sorted(self.silent.items(), reverse=True)}
        found = {}
        for layer in layout.layers:
            stage = stages.get(layer.layer)
            reason = self.reason or self.blind.get(layer.layer)
            reason = reason or (None if stage is None else by_stage.get(stage))
            if reason:
                found[layer.layer] = reason
        return found


def doubts_of(
    by_rank: Mapping[int, Sequence[ProducerSpan]], ended: Mapping[int, RankWork], at_end: bool = False
) -> dict[int, RankDoubt]:
    """What is doubtful, by DP rank; a DP rank of which nothing is doubtful is left out.

    Args:
        by_rank: all producers of a deployment in a window, by DP rank.
        ended: what each DP rank had computed at the window's end.
        at_end: whether a worker counts is judged at the window's end, not in all of it. For counters, whose
            rates are of the time since the last scrape.
    """
    sizes = heard_last(item.producer for members in by_rank.values() for item in members)
    found = {}
    heard = {id(item) for item in speaking([item for of in by_rank.values() for item in of], at_end)}
    for rank, members in by_rank.items():
        silent = _silent(members, ended[rank], sizes, at_end) if rank < sizes.dp_size else {}
        reason = _why_unknown(members, at_end) or _why_apart(members, ended[rank], at_end)
        blind = _blind(members, [item for item in members if id(item) in heard])
        if silent or blind or reason:
            found[rank] = RankDoubt(silent, blind, reason)
    return found


def why_off(producer: ProducerState, first: Totals | None, last: Totals) -> str | None:
    """Why a worker's capture was disabled in some part of a window, or None: it wasn't.

    What it computed meanwhile is not known, and not zero, also where it never counted.

    Args:
        producer: the worker.
        first: its totals at the window's start; None: the window is since its begin.
        last: its totals at the window's end.
    """
    before = 0 if first is None else first.switches
    if last.switches == before and last.switches % 2 == 0:
        return None
    if producer.latest.state != "disabled":
        return "capture was disabled in it"
    return f"capture is disabled: {producer.latest.state_reason or 'no reason was given'}"


def _why_unknown(members: Sequence[ProducerSpan], at_end: bool) -> str | None:
    """Why the tokens of a DP rank aren't known at all, or None."""
    if all(item.span.truncated and item.span.late for item in members):
        return "the window is before what the service remembers"
    reporting = [item for item in members if not item.producer.stale or item.span.end > item.span.start]
    stopped = [_stopped(item, at_end) for item in reporting]
    return stopped[0] if stopped and all(stopped) else None


def _why_apart(members: Sequence[ProducerSpan], ended: RankWork, at_end: bool) -> str | None:
    """Why a DP rank's total misses what a worker counts, or None: it doesn't.

    The rank's total is the most that a worker tells. A worker whose capture was off for a while, perhaps in a
    former life, has less for good. If those that have most stop, the total stands still until it overtakes.
    """
    behind = [item for item in members if item.span.last.switches and item.span.last.tokens < ended.tokens]
    if not behind:
        return None  # almost always
    heard = max(item.producer.received_at for item in members)
    leading = [item for item in members if item.span.last.tokens >= ended.tokens]
    # There may be none that leads: the total is of prefill and decode, each the most that a worker tells.
    if not leading or not all(_stopped(item, at_end) or _fell_silent(item, heard) for item in leading):
        return None
    risen = ended.tokens - work_of(item.span.first for item in members).tokens
    if any(not _stopped(item, at_end) and _rise_of(item, at_end) > risen for item in behind):
        return "its workers' totals drew apart while capture was off in one of them"
    return None


def _rise_of(item: ProducerSpan, at_end: bool) -> float:
    """Tokens that a worker counted in a window. What it will count at its end, if it is heard: any number."""
    if at_end:
        return 0.0 if item.producer.stale else math.inf
    return item.span.last.tokens - item.span.tokens_before


def stages_of(spans: Sequence[ProducerSpan]) -> dict[int, int]:
    """Layer to the PP rank that has it, or had it last: a worker whose capture is off names no layers."""
    newest = sorted(spans, key=lambda item: item.producer.received_at)
    before = {(item.span.last.layout, _place(item.producer.latest.producer)[0]): None for item in newest}
    now = {
        (item.producer.latest.counted.layout, item.producer.latest.producer.pp_rank): None for item in newest
    }
    return {layer.layer: pp_rank for layout, pp_rank in [*before, *now] for layer in layout.layers}


def speaking(spans: Sequence[ProducerSpan], at_end: bool = False) -> list[ProducerSpan]:
    """The workers whose word on layers holds in a window: those the deployment has, and those heard in it.

    Args:
        spans: all producers of a deployment.
        at_end: only those that it has.
    """
    present = set(map(id, within_sizes([item.producer for item in spans])))
    return [
        item
        for item in spans
        if id(item.producer) in present or (not at_end and item.span.end > item.span.start)
    ]


def doubtful(layout: Layout, layers: Container[int]) -> BoolArray:
    """Layers as a mask over a layout, bool [L]."""
    return np.array([layer.layer in layers for layer in layout.layers], dtype=np.bool_)


def _silent(
    members: Sequence[ProducerSpan], ended: RankWork, sizes: Producer, at_end: bool
) -> dict[Place, str]:
    found = {}
    here = {_place(item.producer.latest.producer): item for item in members}
    heard = max(item.producer.received_at for item in members)
    for pp_rank in range(sizes.pp_size):
        for tp_rank in range(sizes.tp_size):
            why = _why_silent(here.get((pp_rank, tp_rank)), heard, ended, at_end)
            if why:
                found[pp_rank, tp_rank] = f"its worker of PP rank {pp_rank}, TP rank {tp_rank}: {why}"
    return found


def _why_silent(item: ProducerSpan | None, heard: float, ended: RankWork, at_end: bool) -> str | None:
    """Why a worker of a DP rank, which was last heard at ``heard``, doesn't count; None: it does."""
    if item is None:
        return "never reported"
    if item.span.last.tokens >= ended.tokens:
        return None  # nothing is missing that another one has
    return _stopped(item, at_end) or ("fell silent" if _fell_silent(item, heard) else None)


def _stopped(item: ProducerSpan, at_end: bool) -> str | None:
    """Why a worker's capture was disabled in some part of the window, or at its end, or None."""
    return why_off(item.producer, item.span.last if at_end else item.span.first, item.span.last)


def _fell_silent(item: ProducerSpan, heard: float) -> bool:
    """Whether a worker stopped to report before the window's end, while its DP rank was heard until later."""
    producer, until = item.producer, item.span.until
    past_it = until is None or until > producer.received_at
    return past_it and heard - producer.received_at > producer.stale_after


def _blind(members: Sequence[ProducerSpan], heard: Sequence[ProducerSpan]) -> dict[int, str]:
    """Layers that a worker of a DP rank doesn't cover though it did, or another one does, to its reason."""
    if not any(item.producer.latest.not_counted for item in heard):
        return {}
    had = {layer for item in members for layer in item.span.last.layout.index}
    return {
        entry.layer: f"not covered by all of its workers: {entry.reason}"
        for item in heard
        for entry in item.producer.latest.not_counted
        if entry.layer in had
    }


def _place(who: Producer) -> Place:
    return who.pp_rank, who.tp_rank
