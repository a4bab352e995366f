"""What the service should know of one worker at any instant, from its frames (docs/how-it-works.md)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

from tests.oracle.delivery import Arrival
from tests.oracle.layout import Copies
from tests.oracle.traffic import Snapshot

Number = int | Fraction
Numbers = Mapping[tuple[object, ...], Number]
"""Cumulative figures by name. All but idle steps are by phase: ``prefill``, ``decode``, ``unknown``.

``("tokens", phase)``, ``("steps", phase or "mixed")``, ``("idle",)``, ``("rows", phase, layer)``,
``("slots", phase, layer, expert)``, ``("ep", phase, layer, EP rank)``, ``("unplaced", phase, layer)``.
"""
Result = Literal["accepted", "duplicate", "stale"]


class State(NamedTuple):
    """What is known of a worker at an instant: figures, when they came, and whether they are a guess."""

    numbers: Numbers
    at: float
    guessed: bool

    @property
    def tokens(self) -> Number:
        """All tokens of the worker."""
        return sum(self.numbers.get(("tokens", phase), 0) for phase in ("prefill", "decode", "unknown"))


def plus(first: Numbers, second: Numbers, sign: int = 1) -> dict[tuple[object, ...], Number]:
    """The sum by name, or with ``sign`` -1 the difference."""
    total = dict(first)
    for name, value in second.items():
        total[name] = total.get(name, 0) + sign * value
    return total


def combined(parts: Iterable[Numbers]) -> dict[tuple[object, ...], Number]:
    """The sum by name of all parts."""
    total: dict[tuple[object, ...], Number] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


class Ledger:
    """The account of one worker."""

    def __init__(self) -> None:
        self.latest: dict[int, Snapshot] = {}
        self.times: list[float] = []
        self._numbers: list[Numbers] = []
        self.begin = math.inf
        self.newest_at = 0.0  # a late frame of a former epoch is no sign of life

    def take(self, arrival: Arrival) -> Result:
        """Account for a frame: what the service should answer to it."""
        new = arrival.snapshot
        old = self.latest.get(new.epoch)
        if old is not None and new.seq <= old.seq:
            return "duplicate" if new.seq == old.seq else "stale"
        self.begin = min(self.begin, arrival.at - (new.captured - new.epoch) / 1e9)
        grown = plus(self._numbers[-1] if self._numbers else {}, grown_by(old, new))
        self.latest[new.epoch] = new
        if self.newest is new:
            self.newest_at = arrival.at
        if self.times and self.times[-1] == arrival.at:
            self._numbers[-1] = grown
        else:
            self.times.append(arrival.at)
            self._numbers.append(grown)
        return "accepted"

    @property
    def newest(self) -> Snapshot:
        """The newest frame of the newest epoch."""
        return self.latest[max(self.latest)]

    def state(self, at: float) -> State:
        """What is known at an instant: the latest arrival at or before it."""
        place = bisect_right(self.times, at) - 1
        if place >= 0:
            return State(self._numbers[place], self.times[place], False)
        if at <= self.begin:
            return State({}, self.begin, False)
        return State(self._numbers[0], self.times[0], True)

    def reported(self, start: float, end: float) -> bool:
        """Whether a frame was accepted after ``start`` and until ``end``."""
        return bisect_right(self.times, end) > bisect_right(self.times, start)


def grown_by(old: Snapshot | None, new: Snapshot) -> Numbers:
    """What was counted between two frames of one epoch; ``old`` None: since its start."""
    told = new.phased and (old is None or old.phased)
    now, before = new.totals, old.totals if old else None
    grown: dict[tuple[object, ...], Number] = {
        ("idle",): now.idle_steps - (before.idle_steps if before else 0)
    }

    def split(name: tuple[object, ...], whole: int, decode: int) -> None:
        parts = {"prefill": whole - decode, "decode": decode} if told else {"unknown": whole}
        for phase, value in parts.items():
            grown[(name[0], phase, *name[1:])] = value

    split(("tokens",), now.tokens - (before.tokens if before else 0), _decode(now, before, "decode_tokens"))
    steps = now.steps - (before.steps if before else 0)
    mixed = _decode(now, before, "mixed_steps")
    split(("steps",), steps - mixed if told else steps, _decode(now, before, "decode_steps"))
    if told:
        grown[("steps", "mixed")] = mixed
    for layer in new.layers:
        index = layer.index
        rows, decode_rows = now.rows[index], now.decode_rows[index]
        slots, decode_slots = list(now.slots[index]), list(now.decode_slots[index])
        if before is not None:
            rows, decode_rows = rows - before.rows[index], decode_rows - before.decode_rows[index]
            slots = [a - b for a, b in zip(slots, before.slots[index], strict=True)]
            decode_slots = [a - b for a, b in zip(decode_slots, before.decode_slots[index], strict=True)]
        split(("rows", index), rows, decode_rows)
        for expert, (whole, decode) in enumerate(zip(slots, decode_slots, strict=True)):
            split(("slots", index, expert), whole, decode)
    grown.update(_placed(grown, new.placement))
    return grown


def _decode(now: object, before: object, name: str) -> int:
    value: int = getattr(now, name) - (getattr(before, name) if before else 0)
    return value


def _placed(grown: Numbers, placement: Mapping[int, Copies] | None) -> Numbers:
    """Slots by EP rank, an expert's split evenly over its copies; unplaced where there is no placement."""
    placed: dict[tuple[object, ...], Number] = {}
    for name, value in grown.items():
        if name[0] != "slots":
            continue
        _, phase, layer, expert = name
        if placement is None:
            whole = ("unplaced", phase, layer)
            placed[whole] = placed.get(whole, 0) + value
            continue
        ranks = [rank for logical, rank in placement[layer] if logical == expert]  # type: ignore[index]
        if len(set(ranks)) > 1:
            guess = ("estimated", phase, layer)
            placed[guess] = placed.get(guess, 0) + value
        for rank in ranks:
            share = ("ep", phase, layer, rank)
            placed[share] = placed.get(share, 0) + (Fraction(value, len(ranks)) if len(ranks) > 1 else value)
    return placed
