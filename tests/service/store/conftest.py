"""Stores of each kind, and what moescope logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from moescope.service.settings import Settings
from moescope.service.store.interface import Store
from moescope.service.store.open import open_store as open_setting


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What moescope logs."""
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    return caplog


@pytest.fixture
def open_store(store_setting: str) -> Iterator[Callable[..., Store]]:
    """Open the store of the test; at the end it is closed."""
    stores: list[Store] = []

    def opened(**settings: float) -> Store:
        for store in stores:
            store.close()
        stores[:] = [open_setting(Settings(store=store_setting, **settings))]  # type: ignore[arg-type]
        return stores[0]

    yield opened
    for store in stores:
        store.close()
