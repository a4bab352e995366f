"""What the tests of the strategy of one kernel a step share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.capture.counting.noted_launches import Bench, NotedTables


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made: list[Bench] = []
    kernels: Any = ModuleType("moescope.capture.counting.launch")
    kernels.supports = lambda dtype: not dtype.is_floating_point
    kernels.launch_layer = None
    kernels.launch_step = lambda table, *_: made[0].launches.append((table[0], list(table[1])))
    name = "moescope.capture.counting.per_step"
    monkeypatch.setitem(sys.modules, "moescope.capture.counting.launch", kernels)
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "PointerTables", NotedTables)
    monkeypatch.setattr(module, "capture_breaks", lambda: made[0].breakable)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: made[0].capturing)
    made.append(Bench(module))
    yield made[0]
    sys.modules.pop(name, None)
