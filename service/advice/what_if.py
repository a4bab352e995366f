"""The balance to expect under each placement: fitted on one window, checked on a later one.

A placement by load always looks good on the loads it was made from. What it is worth shows on loads that it
has not seen, so every figure here comes twice: ``fitted`` and ``held_out``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from moescope.service.advice.evidence import Evidence
from moescope.service.advice.placements import PlacementArrays, distinct, eplb, linear, moves, round_robin
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import max_and_mean
from moescope.service.measures.summary import Summary, summarise
from moescope.service.wanted import check_wanted

Strategy = Literal["present", "linear", "round_robin", "eplb"]
MAX_SWEEP: Final = 6


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Balance over ranks in one window: the imbalance ratio of each layer, float64 [L], and its summary."""

    by_layer: FloatArray
    summary: Summary


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A placement and what it does.

    Attributes:
        strategy: ``present`` is what the ranks really got, whatever placed it; ``eplb`` what vLLM's policy
            would make.
        redundant: R, copies of each layer beyond one for each expert; None for ``present``.
        placement: where the copies are; None for ``present``.
        fitted, held_out: balance in the window that it was fitted on, and in the later one.
        pieces: ratio of sums in each piece of the later window; None where nothing was routed.
        saving_fitted: share of the busiest ranks' slots, summed over layers, that it saves against the base,
            in the window that it was fitted on; ``saving_held_out`` in the later one.
        moves: expert copies to send, over all judged layers, from where they are now; None: not known.
        in_vain: copies on a rank that has another one of the same expert, over all judged layers: they take
            memory, and no load off the rank. None: it isn't known where the copies are.
        own: our own placement with as many redundant experts, which avoids copies in vain; None where the
            option has none.
        estimate: why what the ranks got is an estimate, of ``present``; None: it is exact.
    """

    strategy: Strategy
    redundant: int | None
    placement: PlacementArrays | None
    fitted: Outcome
    held_out: Outcome
    pieces: tuple[float | None, ...]
    saving_fitted: float
    saving_held_out: float
    moves: int | None
    in_vain: int | None
    own: Option | None = None
    estimate: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: E experts of each layer on G ranks in N nodes, ``groups`` expert groups of the router.

    ``redundant`` are the numbers of redundant experts to try for EPLB; each fits (see :func:`fitting`).
    """

    ranks: int
    nodes: int
    groups: int
    redundant: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class WhatIf:
    """The base, against which savings are, and all options in the order of what they ask of an operator."""

    base: Option
    options: tuple[Option, ...]


def fitting(experts: int, ranks: int, most: int) -> list[int]:
    """Redundant experts, rising, up to ``most``, with which every rank holds equally many copies."""
    return list(range(-experts % ranks, most + 1, ranks))


def sweep(experts: int, ranks: int) -> tuple[int, ...]:
    """A few numbers of redundant experts worth trying: 0 or the least that fits, then doubling copies."""
    least = -experts % ranks
    found = [least]
    step = ranks
    while len(found) < MAX_SWEEP and least + step <= max(experts, ranks):
        found.append(least + step)
        step *= 2
    return tuple(found)


def what_if(evidence: Evidence, question: Question, present: PlacementArrays | None) -> WhatIf:
    """Try every placement.

    Args:
        evidence: loads; at least one layer.
        question: which ranks and how many redundant experts.
        present: where the experts are now, of the judged layers; None: not known.

    Raises:
        ValueError: the numbers don't fit together.
        UnwantedError: nobody waits for it any more.
    """
    shape = len(evidence.layers), evidence.experts, question.ranks
    base = _seen(evidence, present)
    if base is None:
        base = _option("linear", 0, linear(*shape), evidence, base=None, present=present)
    options = [
        _option("linear", 0, linear(*shape), evidence, base=base, present=present),
        _option("round_robin", 0, round_robin(*shape), evidence, base=base, present=present),
    ]
    for redundant in question.redundant:
        check_wanted()
        how = redundant, question.groups, question.nodes, question.ranks
        theirs = _option("eplb", redundant, eplb(evidence.fit, *how), evidence, base=base, present=present)
        if theirs.in_vain:
            placed = distinct(evidence.fit, *how)
            own = _option("eplb", redundant, placed, evidence, base=base, present=present)
            theirs = replace(theirs, own=own)
        options.append(theirs)
    return WhatIf(base, tuple(options))


def _seen(evidence: Evidence, present: PlacementArrays | None) -> Option | None:
    """What the ranks really got; None where that is not known."""
    if evidence.seen_fit is None or evidence.seen_pieces is None:
        return None
    loads = evidence.seen_fit, evidence.seen_pieces
    found = _outcomes(
        strategy="present",
        redundant=None,
        placement=None,
        evidence=evidence,
        loads=loads,
        base=None,
        to_move=None,
        in_vain=None if present is None else present.in_vain,
    )
    return replace(found, estimate=evidence.estimate)


def _option(
    strategy: Strategy,
    redundant: int,
    placement: PlacementArrays,
    evidence: Evidence,
    *,
    base: Option | None,
    present: PlacementArrays | None,
) -> Option:
    """What a placement does, against a base; ``present`` is where the experts are now, if that is known."""
    pieces = np.stack([placement.loads(piece) for piece in evidence.pieces])
    return _outcomes(
        strategy=strategy,
        redundant=redundant,
        placement=placement,
        evidence=evidence,
        loads=(placement.loads(evidence.fit), pieces),
        base=base,
        to_move=None if present is None else int(moves(present, placement).sum()),
        in_vain=placement.in_vain,
    )


def _outcomes(
    *,
    strategy: Strategy,
    redundant: int | None,
    placement: PlacementArrays | None,
    evidence: Evidence,
    loads: tuple[FloatArray, FloatArray],
    base: Option | None,
    to_move: int | None,
    in_vain: int | None,
) -> Option:
    """``loads`` are those of the ranks: [L, G] in the first window, [K, L, G] in the pieces of the later."""
    fit, pieces = loads
    fitted, held_out = (_outcome(evidence.layers, found) for found in (fit, pieces.sum(axis=0)))
    return Option(
        strategy=strategy,
        redundant=redundant,
        placement=placement,
        fitted=fitted,
        held_out=held_out,
        pieces=tuple(_outcome(evidence.layers, piece).summary.ratio_of_sums for piece in pieces),
        saving_fitted=0.0 if base is None else saving(base.fitted, fitted),
        saving_held_out=0.0 if base is None else saving(base.held_out, held_out),
        moves=to_move,
        in_vain=in_vain,
    )


def saving(before: Outcome, after: Outcome) -> float:
    """1 - ratio of sums after / before: the share of the busiest ranks' slots that is saved; 0 when idle."""
    first, second = before.summary.ratio_of_sums, after.summary.ratio_of_sums
    return 0.0 if first is None or second is None else 1.0 - second / first


def _outcome(layers: Sequence[int], loads: FloatArray) -> Outcome:
    most, mean = max_and_mean(loads)
    return Outcome(most / mean, summarise(list(layers), most, mean))
