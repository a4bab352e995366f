"""The checks of a frame against what is known: it contradicts an earlier frame, or can't be true."""

from __future__ import annotations

from typing import Final

import numpy as np

from moescope.capture.wire import Frame, Int64Array
from moescope.service.counts.placing import left_over
from moescope.service.counts.totals import Totals, no_decode

EXACT: Final = 2**53
"""The largest count below which every integer is a double, which is what Prometheus holds."""


class RefusedError(Exception):
    """A well-formed frame that can't be true, or can't be kept; the message names the field.

    ``reason`` is a short word for a metric's label.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def check_growth(frame: Frame, now: Totals, before: Totals, seq: int) -> None:
    """Check that within an epoch the layers stay the same and no total shrinks, in all or in one phase.

    Args:
        frame: the frame.
        now: the totals that it tells.
        before: the totals that an earlier frame of the epoch told.
        seq: the number of that earlier frame.

    Raises:
        RefusedError: the layers changed, or a total shrank.
    """
    if now.layout != before.layout:
        raise RefusedError(
            "layers_changed", f"layers: changed within epoch {frame.epoch}; a restart begins a new one"
        )
    both_phased = now.decode is not None and before.decode is not None
    both_placed = now.ep_slots.ranks == before.ep_slots.ranks > 0
    parts = _parts(before, both_phased, both_placed)
    for (name, new), (_, old) in zip(_parts(now, both_phased, both_placed), parts, strict=True):
        shrunk = np.flatnonzero(new < old)
        if shrunk.size:
            at = int(shrunk[0])
            raise _shrunk(frame, seq, f"{name}[{at}]", int(old[at]), int(new[at]))
    for (name, value), (_, previous) in zip(
        _numbers(now, before, both_phased), _numbers(before, before, both_phased), strict=True
    ):
        if value < previous:
            raise _shrunk(frame, seq, name, previous, value)


def _parts(totals: Totals, phased: bool, placed: bool) -> list[tuple[str, Int64Array]]:
    """The arrays that must not shrink, by name; those by EP rank if they are told."""
    found = [("counts", totals.counts), ("rows", totals.rows)]
    unplaced = left_over(totals.layout, totals) if placed else None
    if unplaced is not None:
        found += [("ep_slots", totals.ep_slots.whole.ravel()), ("counts less ep_slots", unplaced)]
    if phased:
        decode = totals.decode or no_decode(totals)
        found += [
            ("decode_counts", decode.counts),
            ("decode_rows", decode.rows),
            ("counts less decode_counts", totals.counts - decode.counts),
            ("rows less decode_rows", totals.rows - decode.rows),
        ]
        if unplaced is not None:
            by_rank, of_decode = decode.ep_slots.whole.ravel(), left_over(totals.layout, decode)
            found += [
                ("decode_ep_slots", by_rank),
                ("ep_slots less decode_ep_slots", totals.ep_slots.whole.ravel() - by_rank),
                ("decode_counts less decode_ep_slots", of_decode),
                ("counts less ep_slots, less those of decode", unplaced - of_decode),
            ]
    return found


def _numbers(totals: Totals, before: Totals, phased: bool) -> list[tuple[str, int]]:
    """The plain numbers that must not shrink, by name; of drops those that ``before`` has."""
    found = [("tokens", totals.tokens), ("steps", totals.steps), ("idle_steps", totals.idle_steps)]
    found += [("accepted_drafts", totals.accepted_drafts), ("rejected_drafts", totals.rejected_drafts)]
    found += [(f"drops.{key}", totals.drops.get(key, 0)) for key in before.drops]
    if phased:
        decode = totals.decode or no_decode(totals)
        prefill_steps = totals.steps - decode.steps - decode.mixed_steps
        found += [
            ("decode_tokens", decode.tokens),
            ("tokens less decode_tokens", totals.tokens - decode.tokens),
            ("decode_steps", decode.steps),
            ("mixed_steps", decode.mixed_steps),
            ("steps less decode_steps and mixed_steps", prefill_steps),
        ]
    return found


def _shrunk(frame: Frame, seq: int, name: str, old: int, new: int) -> RefusedError:
    return RefusedError(
        "shrunk",
        f"{name}: fell from {old} (seq {seq}) to {new} (seq {frame.seq}) within epoch {frame.epoch}; "
        "totals are cumulative, and a restart begins a new epoch",
    )


def check_steps(frame: Frame) -> None:
    """Check that the numbers of a frame's steps are such as a worker can reach.

    Raises:
        RefusedError: one is not.
    """
    if frame.step_loads is not None and frame.step_loads.end > EXACT:
        raise RefusedError(
            "overflow", f"step_loads.end: {frame.step_loads.end} is more than 2**53, which can't be true"
        )


def check_exact(totals: Totals) -> None:
    """Check that no total is above :data:`EXACT`.

    Raises:
        RefusedError: one is.
    """
    layers, slots = totals.layout.layers, np.zeros(0)
    if totals.counts.size and int(totals.counts.max()) * totals.layout.widest > EXACT:
        # Sums are taken as doubles first, so that the check itself can't overflow.
        slots = np.add.reduceat(totals.counts.astype(np.float64), totals.layout.offsets[:-1])
    for name, values in (("counts", slots), ("rows", totals.rows.astype(np.float64))):
        if values.size and float(values.max()) > EXACT:
            layer = layers[int(np.argmax(values))].layer
            raise RefusedError(
                "overflow", f"{name}: layer {layer} has more than 2**53 in all, which can't be true"
            )
    for name, value in (
        ("tokens", totals.tokens),
        ("steps", totals.steps),
        ("idle_steps", totals.idle_steps),
        ("accepted_drafts", totals.accepted_drafts),
        ("rejected_drafts", totals.rejected_drafts),
        *((f"drops.{key}", value) for key, value in totals.drops.items()),
    ):
        if value > EXACT:
            raise RefusedError("overflow", f"{name}: {value} is more than 2**53, which can't be true")
