"""Histograms of traced requests by their LoRA adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.slots import ListedRequest
from moescope.service.traces.slot_table import Group, histogram_of

OTHERS = None
"""Stands for all adapters that have no histogram of their own."""


@dataclass(slots=True)
class OfAdapter:
    """The requests of an adapter.

    Attributes:
        lora: its name; empty: requests of none; :data:`OTHERS`: those of several adapters.
        adapters: how many adapters they are of.
        requests, tokens: of those whose slots are known.
        slots: by layer and expert, int64 [E] of each layer.
    """

    lora: str | None
    adapters: int = 1
    requests: int = 0
    tokens: int = 0
    slots: dict[MoeLayer, Int64Array] = field(default_factory=dict)


def by_adapter(groups: Sequence[Group], listed: Sequence[ListedRequest], limit: int) -> list[OfAdapter]:
    """The histogram of each adapter: first that of none, then the adapters of most tokens, then all others.

    Args:
        groups: the slots of requests.
        listed: what is known of them, and maybe of more.
        limit: adapters with a histogram of their own, at most.
    """
    here = {number for group in groups for number in group.numbers.tolist()}
    known = {item.number: item for item in listed if item.number in here}
    tokens: Counter[str] = Counter()
    for item in known.values():
        tokens[item.lora] += item.tokens
    named = sorted((name for name in tokens if name), key=lambda name: (-tokens[name], name))
    own = named[:limit]
    found = {name: OfAdapter(name) for name in ([""] if "" in tokens else []) + own}
    others = OfAdapter(OTHERS, adapters=len(named) - len(own))
    for item in known.values():
        of = found.get(item.lora, others)
        of.requests += 1
        of.tokens += item.tokens
    for group in groups:
        of_row = [known[number].lora for number in group.numbers.tolist()]
        for name in dict.fromkeys(of_row):
            rows = np.array([other == name for other in of_row], bool)
            _add(found.get(name, others), group.only(rows))
    return [*found.values(), *([others] if others.adapters else [])]


def _add(of: OfAdapter, group: Group) -> None:
    for layer, slots in histogram_of([group]).items():
        of.slots[layer] = of.slots[layer] + slots if layer in of.slots else slots
