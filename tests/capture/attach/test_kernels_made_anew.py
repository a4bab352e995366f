"""Kernels that vLLM makes anew while it serves, at whatever point of a change: each step after it is counted.

The kernels hold their callbacks, as in vLLM 0.27 to 0.31: a new one has none. The calls are those
of vLLM's worker, without the engine behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig
from vllm.distributed import parallel_state

from moescope.capture.attach.mixin import extended
from moescope.capture.seam.rows import StepRows
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.seam.held_callbacks import EXPERTS, TOP_K, holding, kernel_of, made_anew

LAYERS = 3
TOKENS = 5
SCHEDULED = SimpleNamespace(
    scheduled_new_reqs=[],
    scheduled_cached_reqs=SimpleNamespace(req_ids=["a"], num_computed_tokens=[9], resumed_req_ids=set()),
    finished_req_ids=set(),
    num_scheduled_tokens={"a": TOKENS},
    scheduled_spec_decode_tokens={},
    total_num_scheduled_tokens=TOKENS,
)
Act = Callable[[], Any]


class Model(torch.nn.Module):
    """Layers whose kernels route inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(holding(layer) for layer in range(LAYERS))

    def load_weights(self, weights: Any) -> None:
        """As vLLM's models have it; the kernels stay."""

    def remade(self) -> None:
        """All kernels are others."""
        for layer in self.layers:
            made_anew(layer)

    def forward(self, logits: list[torch.Tensor]) -> None:
        for layer, of_layer in zip(self.layers, logits, strict=True):
            kernel_of(layer).runs(of_layer)


class Inner:
    """What is behind our worker class. Each call does what it is given."""

    def __init__(self, model: Model) -> None:
        self.model, self.model_runner = model, None
        self.expected = [torch.zeros(EXPERTS, dtype=torch.int64) for _ in range(LAYERS)]

    def execute_model(self, scheduled: Any) -> None:
        logits = [torch.randn(TOKENS, EXPERTS) for _ in range(LAYERS)]
        self.model(logits)
        for counts, of_layer in zip(self.expected, logits, strict=True):
            counts += torch.bincount(of_layer.topk(TOP_K).indices.flatten(), minlength=EXPERTS)

    def execute_dummy_batch(self) -> bool:
        """Run a step that counts nothing, and tell whether all kernels had callbacks."""
        bound = all(kernel_of(layer).routing_replay_capture_fn is not None for layer in self.model.layers)
        self.model([torch.randn(TOKENS, EXPERTS)] * LAYERS)
        return bound

    def does(self, act: Act = lambda: None) -> None:
        act()

    reload_weights = start_weight_update = start_draft_weight_update = does
    update_weights = finish_weight_update = reset_weights = does


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("tp", "pp", "ep"):
        group = SimpleNamespace(rank_in_group=0, world_size=1)
        monkeypatch.setattr(parallel_state, f"get_{name}_group", lambda group=group: group)
    config: Any = VllmConfig()
    config.model_config = SimpleNamespace(served_model_name="tiny", model="tiny")
    made: Any = extended(type("Worker", (Inner,), {"__module__": "vllm.v1.worker.gpu_worker"}))(Model())
    settings = CaptureSettings.read({"MOESCOPE_ENDPOINT": "http://127.0.0.1:9"})[0]
    made._capture = session = CaptureSession(made.model, config, torch.device("cpu"), settings)
    session.capturer._step_rows = lambda: StepRows(None, None)
    session.serving_begins()
    yield made
    session.close()


def assert_exact(worker: Any) -> None:
    capturer = worker._capture.capturer
    assert capturer.disabled_reason is None
    found = [capturer.buffers.counts_of(layer).tolist() for layer in range(LAYERS)]
    assert found == [counts.tolist() for counts in worker.expected]


def test_in_any_call_of_a_weight_transfer(worker: Any) -> None:
    for remade_in in range(5):
        acts: list[Act] = [lambda: None] * 5
        acts[remade_in] = worker.model.remade
        worker.start_weight_update(acts[0])
        for act in acts[1:4]:
            worker.update_weights(act)
        worker.finish_weight_update(acts[4])
        worker.execute_model(SCHEDULED)
        assert_exact(worker)
        assert worker._capture._model.weights.now.version == remade_in + 1


def test_in_chunks_with_steps_in_between(worker: Any) -> None:
    worker.start_weight_update()
    for _ in range(3):
        worker.update_weights(worker.model.remade)
        worker.execute_model(SCHEDULED)
        assert_exact(worker)
    worker.finish_weight_update(worker.model.remade)
    worker.execute_model(SCHEDULED)
    assert_exact(worker)
    assert worker._capture._model.weights.now.version == 1


@pytest.mark.parametrize("way", ["reload_weights", "reset_weights", "start_draft_weight_update"])
def test_in_other_ways(worker: Any, way: str) -> None:
    getattr(worker, way)(worker.model.remade)
    worker.execute_model(SCHEDULED)
    assert_exact(worker)


def test_by_an_extension_that_loads_and_then_processes_the_weights(worker: Any) -> None:
    worker.model.load_weights([])
    worker.model.remade()
    worker.execute_model(SCHEDULED)
    assert_exact(worker)
    worker.model.load_weights([])
    worker.execute_model(SCHEDULED)
    worker.model.remade()  # vLLM tells nobody
    worker.execute_model(SCHEDULED)
    assert_exact(worker)


def test_one_alone_that_nobody_tells_of_within_as_many_steps_as_there_are_layers(worker: Any) -> None:
    made_anew(worker.model.layers[1])
    for _ in range(LAYERS):
        worker.execute_model(SCHEDULED)
    assert kernel_of(worker.model.layers[1]).routing_replay_capture_fn is not None
    assert worker._capture.capturer.disabled_reason is None


def test_a_layer_without_a_kernel_in_the_midst_of_a_change(worker: Any) -> None:
    method = worker.model.layers[1].routed_experts.quant_method
    kernel = method.moe_kernel
    worker.start_weight_update()
    worker.update_weights(lambda: setattr(method, "moe_kernel", None))
    worker.update_weights(lambda: setattr(method, "moe_kernel", kernel))
    worker.finish_weight_update(worker.model.remade)
    worker.execute_model(SCHEDULED)
    assert_exact(worker)


def test_before_a_dummy_step(worker: Any) -> None:
    """vLLM refuses the sink of a kernel that can't write to it, also in a dummy step."""
    assert worker.execute_dummy_batch()
    worker.finish_weight_update(worker.model.remade)
    assert worker.execute_dummy_batch()
    worker.execute_model(SCHEDULED)
    assert_exact(worker)


def test_steps_in_between_bind_nothing(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.reload_weights()
    worker.execute_model(SCHEDULED)
    looked: list[None] = []
    monkeypatch.setattr(worker._capture._model._binding, "renew", lambda: looked.append(None))
    for _ in range(2 * LAYERS):
        worker.execute_model(SCHEDULED)
        worker.execute_dummy_batch()
    assert not looked
