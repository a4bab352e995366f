"""Uploads while the device is busy: each arrives in its turn, and the host does not wait."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture.counting.pinned_ring import BUFFERS, PinnedRing
from tests.gpu.toy import CUDA

UPLOADS = 3 * BUFFERS


def test_each_upload_arrives_though_the_device_reads_none_of_them_yet() -> None:
    target = torch.zeros(64, dtype=torch.int64, device=CUDA)
    seen = torch.zeros(UPLOADS, 64, dtype=torch.int64, device=CUDA)
    ring = PinnedRing(target)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    torch.cuda._sleep(200_000_000)  # about a tenth of a second
    for step in range(UPLOADS):
        ring.buffer()[:] = step
        ring.upload(64 - step)
        seen[step].copy_(target)
    torch.cuda.set_sync_debug_mode("default")
    busy = not torch.cuda.current_stream(CUDA).query()
    torch.cuda.synchronize()
    assert busy, "the host has waited, or the device was not held for long enough"
    expected = [[step] * (64 - step) + list(range(step - 1, -1, -1)) for step in range(UPLOADS)]
    assert seen.tolist() == expected
    assert len(ring._buffers) == UPLOADS
    torch.cuda.synchronize()
    ring.buffer()
    assert len(ring._buffers) == UPLOADS
