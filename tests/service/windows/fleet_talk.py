"""Frames of a fleet that starts again, and whose network loses, delays, doubles and reorders them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from moescope.capture import wire
from tests.service.frames import frame, placement, producer

EXPERTS = {0: 4, 1: 6, 4: 3, 5: 4}
TOP_K = 2
STAGES = ((0, 1), (4, 5))


@dataclass(frozen=True)
class Sizes:
    """Ranks of a fleet; its layers are those of :data:`STAGES`, one stage or both."""

    dp: int = 2
    pp: int = 1
    tp: int = 1
    ep: int = 2


@dataclass
class _Rank:
    """What a DP rank has computed since its start: slots by stage, TP rank and layer, and the decode part."""

    epoch: int
    slots: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict)
    decode: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=lambda: [0, 0])  # all, decode
    steps: list[int] = field(default_factory=lambda: [0, 0, 0])  # all, decode, mixed


class Talk:
    """A random fleet; :meth:`arrivals` gives its frames in the order in which they arrive.

    Args:
        seed: of everything random.
        sizes: of the fleet.
        copies: of expert 0, the others have one.
        scale: tokens of a step at most.
        begin: Unix time at which it starts.
    """

    def __init__(
        self, seed: int, sizes: Sizes, *, copies: int = 1, scale: int = 40, begin: float = 1_700_000_000.0
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._sizes, self._copies, self._scale, self._begin = sizes, copies, scale, begin
        self._sharded = bool(self._rng.integers(0, 2))  # over TP, or TP rank 0 counts all rows
        self._seqs: dict[tuple[int, int, int], int] = {}

    def arrivals(self, seconds: int, bad: bool = True) -> Iterator[tuple[float, wire.Frame]]:
        """Frames and when they arrive, rising; each worker sends one a second at a moment of its own."""
        ranks = [self._start(dp_rank, 0) for dp_rank in range(self._sizes.dp)]
        offsets = self._rng.random((self._sizes.dp, self._sizes.pp, self._sizes.tp))
        on_the_way: list[tuple[float, int, wire.Frame]] = []
        number = 0
        for second in range(seconds):
            for dp_rank in range(self._sizes.dp):
                if bad and second and self._rng.random() < 0.03:
                    ranks[dp_rank] = self._start(dp_rank, second)
            moments = sorted((offsets[place], place) for place in np.ndindex(offsets.shape))
            for moment, (dp_rank, pp_rank, tp_rank) in moments:
                self._compute(ranks[int(self._rng.integers(0, self._sizes.dp))])
                made = self._frame(ranks[dp_rank], (dp_rank, pp_rank, tp_rank), second + float(moment))
                for _ in range(int(self._rng.choice([0, 1, 2], p=[0.1, 0.8, 0.1]) if bad else 1)):
                    late = float(self._rng.exponential(2)) if bad and self._rng.random() < 0.2 else 0.0
                    heapq.heappush(
                        on_the_way, (self._begin + second + float(moment) + late + 0.01, number, made)
                    )
                    number += 1
            while on_the_way and on_the_way[0][0] < self._begin + second + 1:
                at, _, made = heapq.heappop(on_the_way)
                yield at, made
        for at, _, made in sorted(on_the_way, key=lambda item: item[:2]):
            yield at, made

    def _start(self, dp_rank: int, second: float) -> _Rank:
        self._seqs = {place: 0 if place[0] == dp_rank else seq for place, seq in self._seqs.items()}
        return _Rank(int((self._begin + second) * 1e9))

    def _compute(self, rank: _Rank) -> None:
        if self._rng.random() < 0.3:
            return
        prefill, decode = (int(self._rng.integers(0, self._scale)) for _ in range(2))
        if not prefill + decode:
            return
        rank.tokens = [rank.tokens[0] + prefill + decode, rank.tokens[1] + decode]
        told = (1, int(not prefill), int(bool(prefill and decode)))
        rank.steps = [before + more for before, more in zip(rank.steps, told, strict=True)]
        for pp_rank in range(self._sizes.pp):
            for layer in STAGES[pp_rank]:
                for tokens, parts in ((prefill, [rank.slots]), (decode, [rank.slots, rank.decode])):
                    for token in range(tokens):
                        tp_rank = token % self._sizes.tp if self._sharded else 0
                        chosen = self._rng.choice(EXPERTS[layer], TOP_K, replace=False)
                        for part in parts:
                            key = (pp_rank, tp_rank, layer)
                            part.setdefault(key, np.zeros(EXPERTS[layer], dtype=np.int64))[chosen] += 1

    def _frame(self, rank: _Rank, place: tuple[int, int, int], second: float) -> wire.Frame:
        dp_rank, pp_rank, tp_rank = place
        self._seqs[place] = self._seqs.get(place, 0) + 1
        counts, decode = (
            {
                layer: part.get((pp_rank, tp_rank, layer), np.zeros(EXPERTS[layer], np.int64)).tolist()
                for layer in STAGES[pp_rank]
            }
            for part in (rank.slots, rank.decode)
        )
        sizes = self._sizes
        who = producer(
            dp_rank=dp_rank,
            dp_size=sizes.dp,
            pp_rank=pp_rank,
            pp_size=sizes.pp,
            tp_rank=tp_rank,
            tp_size=sizes.tp,
            ep_rank=min(dp_rank, sizes.ep - 1),
            ep_size=sizes.ep,
        )
        tables = [self._table(EXPERTS[layer]) for layer in STAGES[pp_rank]]
        return frame(
            counts,
            who=who,
            epoch=rank.epoch,
            seq=self._seqs[place],
            after_s=self._begin + second - rank.epoch / 1e9,
            decode=decode,
            tokens=rank.tokens[0],
            steps=rank.steps[0],
            decode_tokens=rank.tokens[1],
            decode_steps=rank.steps[1],
            mixed_steps=rank.steps[2],
            placement=wire.Placement(version=1, tables=tables, table_of_layer=[0, 1]),
        )

    def _table(self, experts: int) -> wire.PlacementTable:
        logical = [*range(experts), *[0] * (self._copies - 1)]
        ranks = [p % self._sizes.ep for p in range(len(logical))]
        [table] = placement(logical, ranks, 1).tables
        return table
