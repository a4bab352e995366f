"""What is costly to make, once for all tests of the seam."""

from __future__ import annotations

import pytest

from devkit.tiny_moe import ensure_checkpoint
from tests.capture.seam.command_lines import Configure


@pytest.fixture(scope="session")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """vLLM's configuration of a command line, for a tiny model."""
    return Configure(ensure_checkpoint(tmp_path_factory.mktemp("configured")))
