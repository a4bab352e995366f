"""Forms against vLLM's own code, and runs of missing positions against a loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector, AuxRequestOutput
from vllm.forward_context import override_forward_context
from vllm.model_executor.layers.fused_moe import routed_experts_capturer

from moescope.capture.wire import MoeLayer
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces import forms
from moescope.service.traces.forms import VllmRouting, VllmShape, missing_runs
from moescope.service.traces.routing import put_together


def worker(
    layers: tuple[MoeLayer, ...], experts: list[np.ndarray], runs: list[tuple[int, int]]
) -> WorkerTrace:
    return WorkerTrace(
        layers,
        experts[0].dtype.itemsize,
        len(experts[0]),
        (3, 3),
        lambda: np.array(runs, np.int64).reshape(-1, 2),
        lambda start, end: tuple(ids[start:end] for ids in experts),
    )


@pytest.mark.parametrize(("num_experts", "dtype"), [(64, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_it_is_what_vllms_own_capturer_makes(num_experts: int, dtype: type[Any]) -> None:
    depth, moe, tokens = 6, (1, 2, 4), 7
    model = SimpleNamespace(
        get_total_num_hidden_layers=lambda: depth,
        get_num_experts=lambda: num_experts,
        get_num_experts_per_tok=lambda: 3,
        hf_text_config=SimpleNamespace(model_type="test"),
    )
    parallel = SimpleNamespace(data_parallel_rank=0, tensor_parallel_size=1)
    config: Any = SimpleNamespace(model_config=model, parallel_config=parallel)
    capturer = routed_experts_capturer.RoutedExpertsCapturer(16, config)
    rng = np.random.default_rng(0)
    ids = [np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :3] for _ in moe]
    context: Any = SimpleNamespace(dp_metadata=None, batch_descriptor=None)
    with override_forward_context(context):
        for layer, of_layer in zip(moe, ids, strict=True):
            capturer.capture(layer, torch.from_numpy(of_layer))
    theirs = capturer.snapshot_routing_data(tokens).numpy()

    layers = tuple(MoeLayer(layer, num_experts, 3) for layer in moe)
    trace = worker(layers, [of_layer.astype(dtype) for of_layer in ids], [(0, tokens)])
    ours = VllmRouting(put_together([trace]), VllmShape(depth, 3, num_experts), None)
    [rows] = ours.chunks(100)
    assert rows.experts.dtype == theirs.dtype == ours.dtype == dtype
    np.testing.assert_array_equal(rows.experts, theirs)
    assert ours.zero_layers == [0, 3, 5]


def test_its_rows_are_those_that_vllms_own_connector_returns() -> None:
    # 5 tokens of a prompt and 3 sampled ones, the last of which was never computed: 7 rows, as in a trace.
    # The step's batch was padded to 8; vLLM's rows are those from position 0 to before the last token.
    request: Any = SimpleNamespace(request_id="r", num_tokens=8)
    padded = np.arange(8 * 2 * 1, dtype=np.uint8).reshape(8, 2, 1)
    unused: Any = None
    theirs = AuxOutputSchedulerConnector.take_output(unused, request, {"r": AuxRequestOutput(0, padded)})
    assert theirs is not None
    computed = request.num_tokens - 1
    layers = (MoeLayer(0, 16, 1), MoeLayer(1, 16, 1))
    trace = worker(layers, [padded[:computed, 0], padded[:computed, 1]], [(0, 5), (5, 1), (6, 1)])
    [rows] = VllmRouting(put_together([trace]), VllmShape(2, 1, 16), None).chunks(100)
    np.testing.assert_array_equal(rows.experts, theirs)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_missing_runs_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(forms, "_AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    for _ in range(60):
        there = np.flatnonzero(rng.random(20) < 0.6)
        if not len(there):
            continue
        trace = worker((MoeLayer(0, 4, 1),), [np.zeros((len(there), 1), np.uint8)], [(p, 1) for p in there])
        first = int(rng.integers(0, 5))
        expected: list[tuple[int, int]] = []
        for position in range(first, int(there[-1]) + 1):
            if position in there:
                continue
            if expected and expected[-1][1] == position:
                expected[-1] = (expected[-1][0], position + 1)
            else:
                expected.append((position, position + 1))
        routing = put_together([trace], first)
        assert missing_runs(routing, 100) == (expected, False)
        if len(expected) > 1:
            assert missing_runs(routing, 1) == (expected[:1], True)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_position_that_lacks_a_layer_counts_as_not_computed(at_once: int) -> None:
    """Its zeros there are like those of a position that nobody computed."""
    first, second = MoeLayer(0, 4, 1), MoeLayer(1, 4, 1)
    whole = worker((first,), [np.ones((6, 1), np.uint8)], [(0, 6)])
    short = worker((second,), [np.ones((3, 1), np.uint8)], [(1, 3)])
    routing = VllmRouting(put_together([whole, short]), VllmShape(2, 1, 4), None)
    expected = [0, 1, 1, 1, 0, 0]
    assert np.concatenate([*routing.times(at_once)]).tolist() == expected
    assert np.concatenate([rows.times for rows in routing.chunks(at_once)]).tolist() == expected
