"""A session over changes that vLLM makes while it serves: numbers of ranks, steps that failed.

vLLM's elastic expert parallelism needs Ray and GPUs: its groups and its executor are stood in for here. What
it changes, and in which order, was read in vLLM 0.32 (`distributed/elastic_ep/elastic_execute.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig
from vllm.distributed import parallel_state

from moescope.capture.attach.mixin import CapturingWorker
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.step.totals import Totals
from moescope.capture.wire import Frame


class Inner:
    """What is behind our worker class: commits other sizes, as vLLM's executor of elastic EP does."""

    def __init__(self, config: Any, groups: dict[str, Any]) -> None:
        self.config, self.groups = config, groups

    def elastic_ep_execute(self, method: str, dp_size: int | None, removing: bool = False) -> str:
        if removing:
            self.groups["ep"] = None
        elif dp_size is not None:
            self.config.parallel_config.data_parallel_size = dp_size
            self.groups["ep"] = group(1, dp_size)
        return method

    def handle_ft_command(self, request: str) -> str:
        return request


class Worker(CapturingWorker, Inner):
    """Ours in front of that."""


def group(rank: int, size: int) -> SimpleNamespace:
    return SimpleNamespace(rank_in_group=rank, world_size=size)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """DP rank 1 of 4, with a session of its own that sends nothing."""
    groups: dict[str, Any] = {"tp": group(0, 1), "pp": group(0, 1), "ep": group(1, 4)}

    def asked(name: str) -> Any:
        assert groups[name] is not None, "no group"
        return groups[name]

    for name in groups:
        monkeypatch.setattr(parallel_state, f"get_{name}_group", lambda name=name: asked(name))
    config: Any = VllmConfig()
    config.model_config = SimpleNamespace(served_model_name="tiny")
    config.parallel_config.enable_expert_parallel = True
    config.parallel_config.data_parallel_rank, config.parallel_config.data_parallel_size = 1, 4
    made = Worker(config, groups)
    made._capture = CaptureSession(
        torch.nn.Linear(2, 2), config, torch.device("cpu"), CaptureSettings.read({})[0]
    )
    yield made
    made._capture.close()


def frame_of(worker: Worker) -> Frame:
    assert worker._capture is not None
    capturer, flat = worker._capture.capturer, worker._capture.capturer.buffers.flat.numpy()
    return worker._capture._builder.build(Snapshot(flat, Totals(), capturer.disabled_reason, 10**18), {})


def sizes(worker: Worker) -> tuple[int, int, int]:
    assert worker._capture is not None
    who = frame_of(worker).producer
    return who.dp_size, who.ep_size, worker._capture.capturer.ranks.dp_size


def test_sizes_that_elastic_expert_parallelism_changes_are_told_from_then_on(worker: Worker) -> None:
    assert sizes(worker) == (4, 4, 4)
    assert worker.elastic_ep_execute("prepare_reconfiguration", None) == "prepare_reconfiguration"
    assert sizes(worker) == (4, 4, 4)
    for dp_size in (2, 3):
        assert worker.elastic_ep_execute("commit", dp_size) == "commit"
        assert sizes(worker) == (dp_size, dp_size, dp_size)
    assert frame_of(worker).state == "counting"


def test_a_worker_that_is_removed_keeps_its_word(worker: Worker) -> None:
    worker.elastic_ep_execute("commit_scale_down", 2, removing=True)
    assert sizes(worker) == (4, 4, 4)
    assert frame_of(worker).state == "counting"


def test_another_rank_ends_capture_since_totals_would_become_another_ones(worker: Worker) -> None:
    worker.config.parallel_config.data_parallel_rank = 0
    worker.elastic_ep_execute("commit", 2)
    told = frame_of(worker)
    assert (told.producer.dp_rank, told.state) == (1, "disabled")
    assert "DP rank 0 of DP rank 1" in told.state_reason


def test_steps_are_told_no_more_once_vllm_went_on_after_a_failed_one(worker: Worker) -> None:
    assert "steps" not in frame_of(worker).unavailable
    assert worker.handle_ft_command("retry") == "retry"
    told = frame_of(worker)
    assert "a step that failed" in told.unavailable["steps"]
    assert told.step_loads is None
