"""Tests that need a CUDA GPU: `make test-gpu`. Without one every module here is skipped, and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu import scenario


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "of the scenarios that name a model runner only those of this one"
    parser.addoption("--runner", choices=scenario.RUNNERS, help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other runner's tests; the rest say their scenarios in JUnit's properties."""
    only = config.getoption("--runner", default=None)
    out = [item for item in items if only and not of_runner(item, only)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    for item in items:
        item.user_properties.extend(
            ("scenario", f"{one.runner};{one.gpus};{name}") for name, one in scenario.of(item).items()
        )


def of_runner(item: pytest.Item, runner: str) -> bool:
    """Whether all scenarios of a test run with this runner, or with the one that vLLM chooses."""
    return all(one.runner in ("", runner) for one in scenario.of(item).values())


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Any operation that waits for the device raises, from the first use of the fixture to the test's end."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
