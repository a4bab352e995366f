"""What moescope logs, for tests of stores."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What moescope logs."""
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    return caplog
