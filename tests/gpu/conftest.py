"""Tests that need a CUDA GPU: `make test-gpu`. Without one every module here is skipped, and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Any operation that waits for the device raises, from the first use of the fixture to the test's end."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
