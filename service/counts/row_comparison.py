"""The law of rows: in each layer, the rows of a DP rank's TP workers add up to the rank's tokens.

Exactly one TP worker counts each row, whichever layout the rows have. So the sum over the workers of a
pipeline stage is the number of tokens after the same step, in each phase too. Rows and tokens never shrink.
So the sum over snapshots of different steps is within the fewest and the most tokens of the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array
from moescope.service.counts.layers import Layout
from moescope.service.counts.totals import Totals

Kind = Literal["rows", "prefill_rows", "decode_rows"]
KINDS: Final[tuple[Kind, Kind, Kind]] = ("rows", "prefill_rows", "decode_rows")
"""The law holds for all rows and for those of each phase; arrays ``[3, L]`` are in this order."""


@dataclass(frozen=True, eq=False, slots=True)
class Mark:
    """What one worker had counted after a step of its newest start.

    ``step`` is (steps, idle_steps). ``decode_tokens`` and ``decode_rows`` are None where phases are not
    known. ``at`` is when the service took it, seconds of Unix time.
    """

    step: tuple[int, int]
    tokens: int
    decode_tokens: int | None
    layout: Layout
    rows: Int64Array
    decode_rows: Int64Array | None
    at: float


def mark_of(counted: Totals, at: float) -> Mark:
    """The mark of a frame's totals, which arrived at ``at``."""
    decode = counted.decode
    return Mark(
        step=(counted.steps, counted.idle_steps),
        tokens=counted.tokens,
        decode_tokens=None if decode is None else decode.tokens,
        layout=counted.layout,
        rows=counted.rows,
        decode_rows=None if decode is None else decode.rows,
        at=at,
    )


def same_step(marks: Sequence[Mark]) -> bool:
    """Whether all workers' totals are those after one step. Then they also tell the same tokens."""
    first = marks[0]
    return all(
        mark.step == first.step
        and mark.tokens == first.tokens
        and (None in (mark.decode_tokens, first.decode_tokens) or mark.decode_tokens == first.decode_tokens)
        for mark in marks
    )


@dataclass(frozen=True, eq=False, slots=True)
class Comparison:
    """Rows of L layers, added up over a stage's TP workers, beside the tokens.

    Attributes:
        at: when the last of the snapshots arrived, seconds of Unix time.
        steps: steps, dummy steps included, after which the snapshots were taken; the fewest of them.
        tokens: tokens of each kind, int64 [3]; the fewest that any worker told.
        rows: int64 [3, L].
        off: tokens less rows, int64 [3, L]: above zero rows were lost, below zero there are too many. Where
            the snapshots are of different steps, by how much at least.
        partly: layers that not all TP workers cover and that are short of rows: not known whether any are
            lost, bool [L]. Their ``off`` is 0.
        phased: whether the phases are known; if not, only the first of the three rows says something.
    """

    at: float
    steps: int
    tokens: Int64Array
    layout: Layout
    rows: Int64Array
    off: Int64Array
    partly: npt.NDArray[np.bool_]
    phased: bool

    @property
    def holds(self) -> bool:
        """Whether every layer's rows are the tokens, as far as it is known."""
        return not self.off.any()


def compare(marks: Sequence[Mark], before: Comparison | None = None) -> Comparison:
    """Add up the rows of all TP workers of a stage, one mark each.

    Args:
        marks: of the same start; of one step, or of several.
        before: an exact comparison of earlier steps: what was off by then is off now, and is not lost again.
    """
    if before is None and (found := _adding_up(marks)) is not None:
        return found
    layout = reduce(Layout.union, (mark.layout for mark in marks))
    phased = all(mark.decode_rows is not None for mark in marks)
    rows = np.zeros((3, len(layout.layers)), np.int64)
    for mark in marks:
        rows[0] += layout.widened_layers(mark.layout, mark.rows)
        if phased and mark.decode_rows is not None:
            rows[2] += layout.widened_layers(mark.layout, mark.decode_rows)
    if phased:
        np.subtract(rows[0], rows[2], out=rows[1])
    told = [_tokens(mark, phased) for mark in marks]
    fewest, most = np.array(min(told), np.int64), np.array(max(told), np.int64)
    if len(marks) > 1:
        fewest, most = np.min(told, axis=0), np.max(told, axis=0)
    known = off_before(before, layout)
    off = known + off_by(rows + known, fewest, most)
    partly = np.zeros(len(layout.layers), np.bool_)
    if off.any():
        workers = sum(layout.widened_layers(mark.layout, np.ones_like(mark.rows)) for mark in marks)
        partly = (np.asarray(workers) < len(marks)) & (off > 0).any(axis=0)
        off[:, partly] = np.minimum(off[:, partly], 0)
    return Comparison(
        at=max(mark.at for mark in marks),
        steps=min(sum(mark.step) for mark in marks),
        tokens=fewest,
        layout=layout,
        rows=rows,
        off=off,
        partly=partly,
        phased=phased,
    )


def _adding_up(marks: Sequence[Mark]) -> Comparison | None:
    """The comparison, if the marks are of one step and the same layers and add up, as almost always."""
    first = marks[0]
    layout, tokens = first.layout, first.tokens
    if len(marks) > 1 and not (same_step(marks) and all(mark.layout == layout for mark in marks)):
        return None
    if not (_added([mark.rows for mark in marks]) == tokens).all():
        return None
    of_decode = [mark.decode_rows for mark in marks if mark.decode_rows is not None]
    phased = len(of_decode) == len(marks)
    if phased and not (_added(of_decode) == first.decode_tokens).all():
        return None
    told = np.array(_tokens(first, phased), np.int64)
    off, partly = _nothing(len(layout.layers))
    return Comparison(
        at=max(mark.at for mark in marks),
        steps=sum(first.step),
        tokens=told,
        layout=layout,
        rows=np.broadcast_to(told[:, np.newaxis], off.shape),
        off=off,
        partly=partly,
        phased=phased,
    )


def _added(rows: list[Int64Array]) -> Int64Array:
    total = rows[0]
    for more in rows[1:]:
        total = total + more
    return total


@lru_cache(maxsize=16)
def _nothing(layers: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """Nothing is off in any layer, and none is covered in part; comparisons share these."""
    return np.zeros((3, layers), np.int64), np.zeros(layers, np.bool_)


def off_before(before: Comparison | None, layout: Layout) -> Int64Array:
    """What was off by an earlier comparison, int64 [3, L]; zeros if there was none of these layers."""
    if before is None or before.layout != layout:
        return np.zeros((3, len(layout.layers)), np.int64)
    return before.off


def off_by(rows: Int64Array, fewest: Int64Array, most: Int64Array) -> Int64Array:
    """By how much rows are not within tokens, signed as `Comparison.off`.

    Args:
        rows: int64 [K, L].
        fewest, most: bounds of the tokens, int64 [K].
    """
    short, over = fewest[:, np.newaxis] - rows, most[:, np.newaxis] - rows
    return np.asarray(np.maximum(short, 0) + np.minimum(over, 0), np.int64)


def _tokens(mark: Mark, phased: bool) -> tuple[int, int, int]:
    decode = mark.decode_tokens
    return (
        (mark.tokens, mark.tokens - decode, decode) if phased and decode is not None else (mark.tokens, 0, 0)
    )
