"""A toy MoE model on the GPU whose routing is known, shared by tests of strategies and snapshots."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from moescope.capture.capturer import RoutingCapturer
from moescope.capture.counting import CountBuffers
from moescope.capture.layout import Ranks
from moescope.capture.vllm_seam import StepRows
from moescope.capture.wire import MoeLayer

CUDA = torch.device("cuda", 0)
LAYERS = [
    MoeLayer(index, experts, top_k) for index, (experts, top_k) in enumerate([(60, 4), (128, 8), (160, 6)])
]


class Toy:
    """Routes the rows of an input through each layer, and overwrites freed memory as a real model does.

    Attributes:
        expected: int64 [S + L] on the device, what `CountBuffers.flat` must be.
    """

    def __init__(self, layers: list[MoeLayer] = LAYERS, max_tokens: int = 512) -> None:
        self.layers = layers
        self.buffers = CountBuffers(layers, CUDA)
        self.capturer = RoutingCapturer(self.buffers, Ranks(), lambda: StepRows(None, None))
        self.input = torch.zeros(max_tokens, 16, device=CUDA)
        generator = torch.Generator(CUDA).manual_seed(1)
        self.weights = [
            torch.randn(16, layer.num_experts, device=CUDA, generator=generator) for layer in layers
        ]
        self._generator = generator
        self.expected = CountBuffers(layers, CUDA)

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

    def expect(self, valid: int, ordinals: Iterable[int] | None = None) -> None:
        """Note what a step of this many tokens must add."""
        for ordinal in range(len(self.layers)) if ordinals is None else ordinals:
            ids = self.route(ordinal, valid).flatten().long()
            self.expected.counts_of(ordinal).add_(
                torch.bincount(ids, minlength=self.layers[ordinal].num_experts)
            )
            self.expected.rows_of(ordinal).add_(valid)

    def check(self) -> None:
        assert self.capturer.disabled_reason is None
        assert self.buffers.flat.tolist() == self.expected.flat.tolist()
