"""Which trace each position of a joined answer comes from.

Traces are asked in an order. Each position comes from the first one that computed it in all layers, else from
the first that computed it in some. So no row has layers of two computations, which may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from moescope.capture.wire import Int64Array
from moescope.service.traces.sources import Source
from moescope.service.traces.spans import common, nothing, together, without

MAX_RUNS: Final = 4096
"""Runs of positions that an answer may be made of, and runs that it may say to be missing, at most."""


class TooManyRunsError(Exception):
    """An answer would be made of more runs than :data:`MAX_RUNS`."""

    def __init__(self) -> None:
        super().__init__(
            f"The positions come from different traces in more than {MAX_RUNS} runs: ask for fewer positions "
            "with first and end."
        )


class Offer(NamedTuple):
    """A trace, and the positions that may be taken from it."""

    source: Source
    allowed: Int64Array


class Plan(NamedTuple):
    """What is taken from where.

    Attributes:
        taken: for each offer, in order, the positions taken from it.
        left: the positions that no offer has.
    """

    taken: tuple[Int64Array, ...]
    left: Int64Array


def plan(wanted: Int64Array, offers: Sequence[Offer], layers: Collection[int]) -> Plan:
    """Choose for each position of ``wanted`` one of the offers.

    Args:
        wanted: the positions, as spans.
        offers: in their order.
        layers: all layers that any of them has.

    Raises:
        TooManyRunsError: there are more runs than an answer may have.
        StoreError: the runs of a trace can't be read.
    """
    taken = [nothing() for _ in offers]
    left = wanted
    for of_whole_rows in (True, False):
        for at, (source, allowed) in enumerate(offers):
            computed = source.whole(layers) if of_whole_rows else source.anywhere
            given = common(left, common(allowed, computed))
            if len(given):
                taken[at] = together(taken[at], given)
                left = without(left, given)
        if sum(map(len, taken)) > MAX_RUNS:
            raise TooManyRunsError
    return Plan(tuple(taken), left)
