"""A live state that goes by the test's clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from tests.service.conftest import Clock


@pytest.fixture
def make_state(clock: Clock) -> Callable[..., LiveState]:
    return lambda **settings: LiveState(Settings(**settings), clock)
