"""Services for tests of the client: the fixtures of tests/service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.conftest import Service, clock, no_settings_from_outside, start_service

__all__ = ["clock", "no_settings_from_outside", "start_service"]


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """One that keeps traces."""
    return start_service(store=str(tmp_path / "store"))
