"""How the host's values of a step reach a tensor on the device: through pinned memory, without waiting."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy.typing as npt
import torch

BUFFERS: Final = 4


class PinnedRing:
    """Uploads to one tensor, in the order of the current stream.

    The device reads a host buffer some time after its copy was enqueued, so the values of the next upload go
    to another buffer. The ring takes the oldest one if the device has read it, else it adds a new one.

    For the thread that enqueues the steps: fill what `buffer` returns, then `upload`.

    Args:
        target: where uploads go, of any type and shape. On a CPU the buffers are plain memory.
    """

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target
        self._buffers = deque(_HostBuffer(target) for _ in range(BUFFERS))

    def buffer(self) -> npt.NDArray[Any]:
        """Host memory for the next upload, shaped as the target; it holds values of an earlier upload."""
        if not self._buffers[0].is_read:
            self._buffers.appendleft(_HostBuffer(self._target))
        return self._buffers[0].values

    def upload(self, count: int) -> None:
        """Enqueue the copy of the first `count` entries (along the first axis) of what `buffer` returned."""
        buffer = self._buffers.popleft()
        self._target[:count].copy_(buffer.host[:count], non_blocking=True)
        buffer.enqueued()
        self._buffers.append(buffer)


class _HostBuffer:
    """Host memory, and the event after which the device no longer reads it."""

    def __init__(self, target: torch.Tensor) -> None:
        on_gpu = target.device.type == "cuda"
        self.host = torch.zeros(target.shape, dtype=target.dtype, pin_memory=on_gpu)
        self.values: npt.NDArray[Any] = self.host.numpy()
        self._event = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    @property
    def is_read(self) -> bool:
        """Whether the device has read all that was uploaded; never a wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def enqueued(self) -> None:
        """The copy of the values is enqueued in the current stream."""
        if self._event is not None:
            self._event.record()
