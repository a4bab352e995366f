"""Where the counting kernels put the ids of traced rows, and how these rows leave the device.

A step with traced rows gets a row map before its forward pass. The map says for each token of the step to
which row of the staging buffer its ids go. The counting kernels write them there, in CUDA graphs too, since
the addresses of the map and of the buffer never change. After the step the rows are copied to pinned memory
in a side stream, whose event is polled. In a step without traced rows the map is empty, and nothing is
copied.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from moescope.capture.counting.pinned_ring import PinnedRing
from moescope.capture.seam.rows import RowSpan
from moescope.capture.step.word import MAX_TOKENS
from moescope.capture.wire import Int64Array, MoeLayer

STAGING_BYTES: Final = 16 << 20


class StagedRows:
    """The traced rows of one step on their way to the host.

    The step's path makes it. Another thread asks whether the rows have `arrived`, reads them and sets `done`.
    """

    def __init__(
        self,
        host: torch.Tensor,
        event: torch.cuda.Event | None,
        positions: torch.Tensor | None = None,
    ) -> None:
        self._host = host
        self._positions = positions
        self._event = event
        self.done = False
        """Whether the reader has read the rows; only the reader writes it."""

    @property
    def arrived(self) -> bool:
        """Whether the rows are on the host; does not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def view(self) -> np.ndarray:
        """The rows, [n, sum of top_k] as in `TraceStaging.rows`; valid until `done`."""
        return self._host.numpy()

    def positions(self) -> Int64Array | None:
        """The model's own positions of the rows, int64 [n], valid until `done`; None: not asked for."""
        return None if self._positions is None else self._positions.numpy()


class TraceStaging:
    """The row map and the staging buffer of one worker.

    Attributes:
        masked, unwritten: the values of a slot that the router masked, and of one that no layer wrote.
        row_map: int32 [1 + max_tokens] on the device: first the number of traced rows of the step, 0 for
            none; then for each token of the DP rank's step its row in `rows`, or -1.
        rows: [capacity, sum of top_k] on the device, the layers side by side, uint8 where the ids of all
            layers leave room for two more values, else uint16.
        columns: int64 [L] on the device, where each layer's columns begin.

    Args:
        layers: the covered layers.
        max_tokens: no step has more.
        staging_bytes: size of `rows`, about; as much pinned host memory is taken too.
        positions: tells the model's positions, int64 on the device, of the step's rows; None if the host
            knows them. They are valid from the step's forward pass to the next step.
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        max_tokens: int,
        device: torch.device,
        staging_bytes: int = STAGING_BYTES,
        positions: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        small = max(layer.num_experts for layer in layers) <= 254
        self.masked = 0xFF if small else 0xFFFF
        self.unwritten = self.masked - 1
        self.layers = tuple(layers)
        starts = list(itertools.accumulate((layer.top_k for layer in layers), initial=0))
        self.width = starts.pop()
        self.starts: tuple[int, ...] = tuple(starts)
        dtype = torch.uint8 if small else torch.uint16
        self.capacity = max(1, staging_bytes // (self.width * dtype.itemsize))
        self.max_tokens = max_tokens
        on_gpu = device.type == "cuda"
        self.row_map = torch.zeros(1 + max_tokens, dtype=torch.int32, device=device)
        self.rows = torch.full((self.capacity, self.width), self.unwritten, dtype=dtype, device=device)
        self.columns = torch.tensor(starts, dtype=torch.int64, device=device)
        self._host = torch.empty(self.rows.shape, dtype=dtype, pin_memory=on_gpu)
        self._maps = PinnedRing(self.row_map)
        self._positions = (
            None if positions is None else _Positions(positions, self.capacity, max_tokens, device)
        )
        self._side = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._under_way: deque[tuple[int, int, StagedRows]] = deque()
        self._next = 0

    def room(self) -> int:
        """How many rows the next step can have."""
        while self._under_way and self._under_way[0][2].done:
            self._under_way.popleft()
        if not self._under_way:
            self._next = 0
            return self.capacity
        oldest = self._under_way[0][0]
        if self._next <= oldest:
            return oldest - self._next
        return max(self.capacity - self._next, oldest)

    def begin(self, tokens: Int64Array, total: int) -> None:
        """Have the ids of these tokens copied, in their order, by the step that is about to be enqueued.

        Args:
            tokens: [n], their indices among the step's tokens, rising; n is at most `room`.
            total: the step's tokens, at most ``max_tokens``.
        """
        count = len(tokens)
        if self._next + count > self.capacity:
            self._next = 0
        first = self._next
        values = self._maps.buffer()[: 1 + total]
        values[0] = count
        values[1:] = -1
        values[1 + tokens] = np.arange(first, first + count)
        self.rows[first : first + count].fill_(self.unwritten)
        self._maps.upload(1 + total)
        if self._positions is not None:
            self._positions.begin(tokens)

    def collect(self, count: int) -> StagedRows:
        """The step with `count` traced rows is enqueued: enqueue the copy of these rows to the host."""
        first = self._next
        self.clear()
        part = slice(first, first + count)
        pairs = [(self.rows[part], self._host[part])]
        if self._positions is not None:
            pairs.append(self._positions.gather(part))
        event = None
        if self._side is None:
            for here, there in pairs:
                there.copy_(here)
        else:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._side.wait_event(event)
            with torch.cuda.stream(self._side):
                for here, there in pairs:
                    there.copy_(here, non_blocking=True)
                event.record()
        staged = StagedRows(pairs[0][1], event, pairs[1][1] if len(pairs) > 1 else None)
        self._under_way.append((first, count, staged))
        self._next = first + count
        return staged

    def clear(self) -> None:
        """Have nothing copied until the next `begin`."""
        self.row_map[:1].zero_()


class _Positions:
    """The positions of traced rows: gathered behind the step's kernels, so that no kernel and no graph needs
    to know of them. A step without traced rows launches nothing for them."""

    def __init__(
        self, source: Callable[[], torch.Tensor], capacity: int, max_tokens: int, device: torch.device
    ) -> None:
        self._source = source
        self._rows = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._host = torch.empty(capacity, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._tokens = torch.zeros(min(capacity, max_tokens), dtype=torch.int64, device=device)
        self._uploads = PinnedRing(self._tokens)

    def begin(self, tokens: Int64Array) -> None:
        """The traced tokens of the step that is about to be enqueued."""
        self._uploads.buffer()[: len(tokens)] = tokens
        self._uploads.upload(len(tokens))

    def gather(self, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Enqueue the gathering of the step's positions; returns where they are, and where they go."""
        here = self._rows[part]
        torch.index_select(self._source(), 0, self._tokens[: len(here)], out=here)
        return here, self._host[part]


def copy_traced_rows(
    topk_ids: torch.Tensor, span: RowSpan, step_word: torch.Tensor, staging: TraceStaging, ordinal: int
) -> None:
    """Copy a layer's traced rows to `staging`: the reference that the kernel must equal.

    Args:
        topk_ids: logical expert ids, any integer dtype [n, top_k]; those out of the layer's range are masked.
        span: this worker's rows.
        step_word: int64 [1], see `step.word`; rows at or beyond the step's true number of tokens are padding.
        ordinal: of the layer.
    """
    valid = int(step_word) & MAX_TOKENS
    if valid == 0 or int(staging.row_map[0]) == 0:
        return
    end = min(span.first_token + span.count, valid)
    targets = staging.row_map[1 + span.first_token : 1 + end].to(torch.int64)
    taken = (targets >= 0).nonzero().flatten()
    ids = topk_ids[taken + span.start].to(torch.int64)
    ids = ids.masked_fill((ids < 0) | (ids >= staging.layers[ordinal].num_experts), staging.masked)
    start = staging.starts[ordinal]
    columns = staging.rows.numpy() if staging.rows.device.type == "cpu" else None
    width = ids.shape[1]
    if columns is not None:  # torch indexes no uint16
        columns[targets[taken].numpy(), start : start + width] = ids.numpy()
    else:
        rows = staging.rows.view(torch.int16 if staging.rows.dtype is torch.uint16 else torch.uint8)
        rows[targets[taken], start : start + width] = ids.to(rows.dtype)
