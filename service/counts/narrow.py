"""Totals of the past in the narrowest integers that hold them.

Counts of one rank rarely need more than four of their eight bytes. What is remembered of hundreds of ranks,
and what a question of them holds, is half as large so, and it costs a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.ep_slots import EpSlots, no_ep_slots
from moescope.service.counts.layers import Layout
from moescope.service.counts.totals import Decode, Totals, no_decode, no_totals

_NARROW: Final = (np.uint8, np.uint16, np.uint32)
"""No uint64: with int64 numpy would make floats of it."""
_WIDE: Final = 8  # bytes of an int64


def narrowed(totals: Totals) -> Totals:
    """The same totals, to be held. Their arrays are uint8, uint16 or uint32 where no number is larger.

    Differences of two such arrays could wrap: take :func:`widened` before any arithmetic.
    """
    found = _each(totals, _narrow)
    totals.layout.pass_on_sums(totals.counts, found.counts)
    return found


def without_decode_arrays(totals: Totals) -> Totals:
    """:func:`narrowed` totals of whose decode part only tokens and steps are left.

    Its arrays are zeros, which all totals of one shape share.
    """
    narrow, decode = narrowed(replace(totals, decode=None)), totals.decode
    if decode is None:
        return narrow
    zeros = _no_decode(totals.layout, totals.ep_slots.ranks)
    told = replace(zeros, tokens=decode.tokens, steps=decode.steps, mixed_steps=decode.mixed_steps)
    return replace(narrow, decode=told)


@lru_cache(maxsize=16)
def _no_decode(layout: Layout, ranks: int) -> Decode:
    nothing = replace(no_totals(layout), ep_slots=no_ep_slots(len(layout.layers), ranks))
    found = narrowed(replace(nothing, decode=no_decode(nothing))).decode
    assert found is not None
    return found


def widened(totals: Totals) -> Totals:
    """The same totals with arrays of int64 again; themselves if they are so already."""
    return totals if all(array.dtype == np.int64 for array in _arrays(totals)) else _each(totals, _wide)


def wide_nbytes(totals: Totals) -> int:
    """The bytes that :func:`widened` totals take, which are not made for it."""
    return totals.nbytes + sum((_WIDE - array.itemsize) * array.size for array in _arrays(totals))


def _arrays(totals: Totals) -> list[Int64Array]:
    """The arrays that may be narrow."""
    parts: list[Totals | Decode] = [totals] if totals.decode is None else [totals, totals.decode]
    arrays = [totals.unphased_rows]
    for part in parts:
        arrays += [part.counts, part.rows, part.unplaced, part.estimated, part.ep_slots.whole]
        if part.ep_slots.parts is not None:
            arrays.append(part.ep_slots.parts)
    return arrays


def _each(totals: Totals, of: Callable[[Int64Array], Int64Array]) -> Totals:
    """Totals with each of their arrays per expert, layer or EP rank made anew."""
    decode = totals.decode
    return replace(
        totals,
        counts=of(totals.counts),
        rows=of(totals.rows),
        ep_slots=_slots(totals.ep_slots, of),
        unplaced=of(totals.unplaced),
        unphased_rows=of(totals.unphased_rows),
        estimated=of(totals.estimated),
        decode=decode
        and replace(
            decode,
            counts=of(decode.counts),
            rows=of(decode.rows),
            ep_slots=_slots(decode.ep_slots, of),
            unplaced=of(decode.unplaced),
            estimated=of(decode.estimated),
        ),
    )


def _slots(slots: EpSlots, of: Callable[[Int64Array], Int64Array]) -> EpSlots:
    return EpSlots(of(slots.whole), None if slots.parts is None else of(slots.parts))


def _wide(values: Int64Array) -> Int64Array:
    return values.astype(np.int64, copy=False)


def _narrow(values: Int64Array) -> Int64Array:
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    for kind in _NARROW:
        if least >= 0 and most <= np.iinfo(kind).max:
            return values.astype(kind)
    return values
