"""Dummy steps, which vLLM runs where only other DP ranks have requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed import parallel_state

from moescope.capture.attach.mixin import CapturingWorker
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.microbatches import SplitV1, microbatched, stand_in_for_cuda
from tests.capture.seam.runners import in_layers, runner


class Inner:
    """What is behind our worker class: its dummy step is split into microbatches."""

    def __init__(self, config: Any, model: torch.nn.Module) -> None:
        self.config, self.router = config, model.model.layers[0].mlp.router

    def execute_dummy_batch(self) -> None:
        """Each microbatch has nine rows in a router where vLLM says that it has four."""
        route = lambda _: self.router.select_experts(torch.zeros(9, 1), torch.rand(9, 8))  # noqa: E731
        SplitV1(self.config, route).step(8, 8)


class Worker(CapturingWorker, Inner):
    """Ours in front of that."""


@pytest.mark.parametrize("on_error", ["raise", "disable"])
def test_an_unknown_layout_in_a_microbatch_is_raised_in_the_same_dummy_step(
    on_error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This rank's next real step may be far away, while the other ranks serve on."""
    stand_in_for_cuda(monkeypatch)
    for name, size in (("tp", 1), ("pp", 1), ("ep", 2)):
        group = SimpleNamespace(rank_in_group=0, world_size=size)
        monkeypatch.setattr(parallel_state, f"get_{name}_group", lambda group=group: group)
    config = microbatched(2, 0, 2)
    config.model_config = SimpleNamespace(served_model_name="tiny")  # type: ignore[assignment]
    model = in_layers(runner(0))
    worker = Worker(config, model)
    settings = CaptureSettings.read({"MOESCOPE_ON_ERROR": on_error})[0]
    worker._capture = session = CaptureSession(model, config, torch.device("cpu"), settings)
    try:
        session.serving_begins()
        if on_error == "raise":
            with pytest.raises(AssertionError, match="batch of 9 rows"):
                worker.execute_dummy_batch()
        else:
            worker.execute_dummy_batch()
        assert "batch of 9 rows" in str(session.capturer.disabled_reason)
        worker.execute_dummy_batch()  # it is raised once
    finally:
        session.close()
