"""How much is read for a routing, known before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moescope.service.store.limits import SEGMENT_BYTES, SEGMENT_TOKENS
from moescope.service.store.worker_trace import WorkerTrace


@dataclass(frozen=True, slots=True)
class Extent:
    """How large the routing of some workers' traces is, before anything of it is read.

    Attributes:
        layers: how many layers.
        top_k: the largest top-k.
        token_bytes: the most bytes that a token's ids have in the store.
        reading: the most bytes that reading takes at any time, besides the tokens themselves: the runs, and
            one segment of the store, packed, unpacked, and once more as arrays.
    """

    layers: int
    top_k: int
    token_bytes: int
    reading: int

    def grown_to(self, layers: int) -> Extent:
        """That of the same routing once more, with so many layers, made from the routing itself."""
        return replace(
            self,
            layers=max(layers, self.layers),
            token_bytes=self.token_bytes + 2 * self.layers * self.top_k,
        )

    @classmethod
    def of(cls, workers: Sequence[WorkerTrace]) -> Extent:
        """That of these traces of one request, at least one."""
        layers = [layer for worker in workers for layer in worker.layers]
        stored = max(worker.token_bytes for worker in workers)
        segment = max(stored, 2 * min(stored * SEGMENT_TOKENS, SEGMENT_BYTES))
        return cls(
            len({layer.layer for layer in layers}),
            max((layer.top_k for layer in layers), default=0),
            stored,
            sum(worker.runs_bytes for worker in workers) + 3 * segment,
        )
