"""A toy MoE model on the GPU whose routing is known, shared by tests of strategies and snapshots."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.settings.environment import DEFAULT_KEPT_IDS_MIB
from moescope.capture.step.word import Phase
from moescope.capture.wire import MoeLayer

CUDA = torch.device("cuda", 0)
EP_SIZE = 5
LAYERS = [
    MoeLayer(index, experts, top_k) for index, (experts, top_k) in enumerate([(60, 4), (128, 8), (160, 6)])
]


class Toy:
    """Routes the rows of an input through each layer, and overwrites freed memory as a real model does.

    Attributes:
        expected: what the buffers must hold.
        decode: uint8 [tokens] of the step under way or the last one: 1 for decode tokens.
        loads: int32 [M, L, EP_SIZE] of each step that was expected, by microbatch.
    """

    def __init__(
        self,
        layers: list[MoeLayer] = LAYERS,
        max_tokens: int = 512,
        kept_ids_bytes: int = DEFAULT_KEPT_IDS_MIB << 20,
        microbatches: int = 1,
    ) -> None:
        self.layers = layers
        self._rng = np.random.default_rng(0)
        most = max(layer.num_experts for layer in layers)
        ep_ranks = self._rng.integers(0, EP_SIZE, (len(layers), most), dtype=np.int32)
        self.ring = LoadRing(ep_ranks, EP_SIZE, 0, CUDA, microbatches=microbatches)
        self.buffers = CountBuffers(layers, CUDA, max_tokens, self.ring, microbatches)
        self.steps = 0
        self.decode = np.zeros(0, np.uint8)
        self.loads: list[torch.Tensor] = []
        self.capturer = RoutingCapturer(
            self.buffers, Ranks(), lambda: StepRows(None, None), kept_ids_bytes=kept_ids_bytes
        )
        self.input = torch.zeros(max_tokens, 16, device=CUDA)
        generator = torch.Generator(CUDA).manual_seed(1)
        self.weights = [
            torch.randn(16, layer.num_experts, device=CUDA, generator=generator) for layer in layers
        ]
        self._generator = generator
        self.expected = CountBuffers(layers, CUDA, ring=LoadRing(ep_ranks, EP_SIZE, 0, CUDA))

    def route(self, ordinal: int, rows: int) -> torch.Tensor:
        """The ids that a layer's router makes of the input: int32 [rows, top_k]."""
        logits = self.input[:rows] @ self.weights[ordinal]
        return logits.topk(self.layers[ordinal].top_k, dim=-1).indices.to(torch.int32)

    def layer(self, ordinal: int, rows: int) -> None:
        """One layer: routes, tells the capturer, and then allocates and fills what memory it finds free."""
        self.capturer.record(ordinal, self.route(ordinal, rows))
        for _ in range(4):
            torch.full((rows, self.layers[ordinal].top_k), 1, dtype=torch.int32, device=CUDA)

    def forward(self, rows: int, ordinals: Iterable[int] | None = None) -> None:
        for ordinal in range(len(self.layers)) if ordinals is None else ordinals:
            self.layer(ordinal, rows)

    def new_input(self) -> None:
        self.input.normal_(generator=self._generator)

    def begin(self, valid: int) -> None:
        """A step begins: of prefill, of decode and of both in turn."""
        phase = Phase(self.steps % 3)
        self.decode = np.full(valid, phase is Phase.DECODE, np.uint8)
        if phase is Phase.MIXED:
            self.decode = self._rng.integers(0, 2, valid, dtype=np.uint8)
        self.steps += 1
        self.capturer.begin_step(valid, int(self.decode.sum()))
        self.capturer.set_phases(self.decode)

    def expect(self, valid: int, ordinals: Iterable[int] | None = None, half: int | None = None) -> None:
        """Note what the last step, of this many tokens, must add; from row `half` on to microbatch 1."""
        decode = torch.from_numpy(self.decode).to(CUDA).bool()
        loads = torch.zeros_like(self.ring.loads[0])
        for ordinal in range(len(self.layers)) if ordinals is None else ordinals:
            ids, experts = self.route(ordinal, valid).long(), self.layers[ordinal].num_experts
            for phase, rows in ((Phase.PREFILL, ids[~decode]), (Phase.DECODE, ids[decode])):
                counts = torch.bincount(rows.flatten(), minlength=experts)
                self.expected.counts_of(ordinal, phase).add_(counts)
                self.expected.rows_of(ordinal, phase).add_(len(rows))
                by_rank = torch.bincount(self.ring.ep_ranks[ordinal][rows.flatten()], minlength=EP_SIZE)
                self.expected.ep_slots_of(ordinal, phase).add_(by_rank)
            for microbatch, part in enumerate((ids,) if half is None else (ids[:half], ids[half:])):
                ranks = self.ring.ep_ranks[ordinal][part.flatten()]
                loads[microbatch, ordinal] += torch.bincount(ranks, minlength=EP_SIZE).int()
        self.loads.append(loads)

    def check(self) -> None:
        assert self.capturer.disabled_reason is None
        assert self.capturer.totals.phases_known
        assert self.buffers.flat.tolist() == self.expected.flat.tolist()
        assert self.ring.computed == len(self.loads)
        latest = self.loads[-self.ring.capacity :]
        copy = torch.zeros_like(self.ring.loads)
        self.ring.copy_since(0, copy)
        assert torch.equal(copy[: len(latest)], torch.stack(latest))
