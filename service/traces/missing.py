"""Which positions of a joined answer nobody gives, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from moescope.capture.wire import Int64Array
from moescope.service.traces.plan import MAX_RUNS, Offer, TooManyRunsError
from moescope.service.traces.spans import common, nothing, span, without

NOT_KEPT: Final = "not_kept"
"""The request that computed it is known, but no trace of it is here: it was dropped, or it hasn't come, since
the request still runs. Of traces that were here the store knows why they are gone: ``expired``, ``evicted``
or ``incomplete`` (see `Store.why_absent`)."""
NOT_IN_TRACE: Final = "not_in_trace"
"""The trace of the request that computed it is here, without the position: a worker's share of it is not."""
UNREADABLE: Final = "unreadable"
"""The trace of the request that computed it can't be read: it is damaged, or was removed just now."""
OTHER_SHAPE: Final = "other_shape"
"""The trace of the request that computed it is of a model with other experts."""
TOO_MANY: Final = "too_many_references"
"""Its positions come from more requests than are looked for."""
NOT_TOLD: Final = "not_told"
"""A cache had it, and its worker doesn't tell who computed it."""
NO_TRACE: Final = "no_trace"
"""No trace of the request has it: that of the worker or of the instance that computed it isn't here."""
LAYERS_MISSING: Final = "layers_missing"
"""Only some layers of it are here: a worker's share of the trace is not."""
STAGES_MISSING: Final = "stages_missing"
"""Whole pipeline stages of every trace are not here (yet), and no trace has their layers: the answer may lack
them."""
KV_TRANSFER: Final = "kv_transfer"
"""Its keys and values came from another instance; only that one's trace has it."""


class Missing(NamedTuple):
    """Positions that are -1, in some layers or in all.

    Attributes:
        first, end: the positions, ``end`` not included.
        why: a word: one of this module's, or of the worker's (`TakenOver.why`).
        request_id: the request that computed them, where it is known; else empty.
        layers: the layers that are missing; empty: all, with `STAGES_MISSING` those that no trace here has.
    """

    first: int
    end: int
    why: str
    request_id: str = ""
    layers: tuple[int, ...] = ()


class Reason(NamedTuple):
    """Why some positions may be missing."""

    positions: Int64Array
    why: str
    request_id: str = ""


def explained(left: Int64Array, reasons: Iterable[Reason]) -> list[Missing]:
    """The positions that are left, each with the first reason that has it; `NO_TRACE` where none has.

    Raises:
        TooManyRunsError: they are more runs than an answer may name.
    """
    found: list[Missing] = []
    for reason in (*reasons, Reason(left, NO_TRACE)):
        if not len(left):
            break
        here = common(left, reason.positions)
        if len(here):
            found += [Missing(first, end, reason.why, reason.request_id) for first, end in here.tolist()]
            left = without(left, here)
        if len(found) > MAX_RUNS:
            raise TooManyRunsError
    return sorted(found)


def partial(
    offers: Sequence[Offer], taken: Sequence[Int64Array], layers: Collection[int]
) -> Iterator[Missing]:
    """The positions that are taken though their trace lacks some of the layers."""
    for (source, _), positions in zip(offers, taken, strict=True):
        if not len(without(positions, source.whole(layers))):
            continue
        lacking: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for layer in sorted(layers):
            absent = without(positions, source.computed_in.get(layer, nothing()))
            if len(absent):
                lacking.setdefault(tuple(map(tuple, absent.tolist())), []).append(layer)
        for runs, several in lacking.items():
            for first, end in runs:
                yield Missing(first, end, LAYERS_MISSING, source.request.request_id, tuple(several))


def of_stages(
    offers: Sequence[Offer], taken: Sequence[Int64Array], layers: Collection[int]
) -> Iterator[Missing]:
    """All positions that are taken; ``layers`` are those wanted that no trace has; empty: not known."""
    for (source, _), positions in zip(offers, taken, strict=True):
        for first, end in positions.tolist():
            yield Missing(first, end, STAGES_MISSING, source.request.request_id, tuple(sorted(layers)))


def cached(tokens: int) -> Reason:
    """A cache had so many leading positions, and nobody told more."""
    return Reason(span(0, tokens), NOT_TOLD)
