"""Tests that need a CUDA GPU: `make test-gpu`. Without one their modules are skipped, and say so."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from tests.gpu import scenario


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "of the scenarios that name a model runner only those of this one"
    parser.addoption("--runner", choices=scenario.RUNNERS, help=text)
    text = "only the tests of this scenario; may be given several times"
    parser.addoption("--scenario", action="append", default=[], help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what isn't asked for; the rest say their scenarios in JUnit's properties."""
    runner, names = config.getoption("--runner", None), config.getoption("--scenario", [])
    out = [item for item in items if not scenario.is_wanted(scenario.of(item), runner, names)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    for item in items:
        item.user_properties.extend(
            ("scenario", f"{one.runner};{one.gpus};{name}") for name, one in scenario.of(item).items()
        )


@pytest.fixture(autouse=True)
def _no_graphs_of_earlier_tests() -> None:
    """A graph that the collector frees while another one is captured would end that capture."""
    gc.collect()


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Any operation that waits for the device raises, from the first use of the fixture to the test's end."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
