"""Real servers, each started once and shared by many tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import DP2_EP2, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2 with prefix caching and chunked prefill (64 tokens a step)."""
    folder: Path = tmp_path_factory.mktemp("cluster")
    with Cluster(folder, DP2_EP2) as running:
        yield running
