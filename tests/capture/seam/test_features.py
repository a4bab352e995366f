"""What the installed vLLM has, what older and newer ones have in its place, and what is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import ParallelConfig
from vllm.model_executor.layers.fused_moe import layer as vllm_layer
from vllm.model_executor.layers.fused_moe import routed_experts_capturer
from vllm.v1 import worker as worker_package
from vllm.v1.worker import ubatching
from vllm.v1.worker.gpu import model_runner

from moescope.capture.seam import features

TOKENS = {"prefill": 40, "chunk": 3, "draft": 2, "decode": 1, "other": 1}
OUTPUT = SimpleNamespace(num_scheduled_tokens=TOKENS, scheduled_spec_decode_tokens={"draft": [7]})
RUNNER = SimpleNamespace(decode_query_len=1)


def without_drafts(num_tokens_per_req: dict[str, int], decode_query_len: int) -> list[str]:
    """As in vLLM 0.26 and 0.27."""
    return sorted(num_tokens_per_req, key=lambda name: (num_tokens_per_req[name] != decode_query_len, name))


class RunnerBefore026:
    """As much of model runner V2 as vLLM 0.20 to 0.25 tell of the order."""

    def prepare_inputs(self, num_tokens_per_req: dict[str, int]) -> list[str]:
        return sorted(num_tokens_per_req, key=num_tokens_per_req.get)  # type: ignore[arg-type]


class RunnerOfAnotherOrder:
    def prepare_inputs(self, num_tokens_per_req: dict[str, int]) -> list[str]:
        return list(num_tokens_per_req)


def test_the_installed_vllm_orders_a_batch_by_its_own_function() -> None:
    assert list(features.sorter_v2()(OUTPUT, RUNNER)) == ["draft", "decode", "other", "chunk", "prefill"]


def test_a_vllm_without_drafts_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_runner, "sort_batch_req_ids", without_drafts)
    assert list(features.sorter_v2()(OUTPUT, RUNNER)) == ["decode", "other", "chunk", "draft", "prefill"]


def test_a_vllm_that_sorts_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(model_runner, "sort_batch_req_ids")
    monkeypatch.setattr(model_runner, "GPUModelRunner", RunnerBefore026)
    assert features.sorter_v2()(OUTPUT, SimpleNamespace()) == RunnerBefore026().prepare_inputs(TOKENS)


def other_arguments(requests: Any, weights: Any) -> list[str]:
    return [*requests, *weights]


@pytest.mark.parametrize("sort", [None, other_arguments, sorted])
def test_an_order_that_is_not_known_is_no_order(monkeypatch: pytest.MonkeyPatch, sort: Any) -> None:
    if sort is None:
        monkeypatch.delattr(model_runner, "sort_batch_req_ids")
        monkeypatch.setattr(model_runner, "GPUModelRunner", RunnerOfAnotherOrder)
    else:
        monkeypatch.setattr(model_runner, "sort_batch_req_ids", sort)
    with pytest.raises(LookupError, match=r"in another way|takes"):
        features.sorter_v2()


@pytest.mark.parametrize(("setting", "v2"), [("1", True), ("0", False)])
def test_the_runner_is_told_by_the_configuration_or_else_by_vllms_environment(
    monkeypatch: pytest.MonkeyPatch, setting: str, v2: bool
) -> None:
    assert features.runs_v2(SimpleNamespace(use_v2_model_runner=not v2)) is not v2
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", setting)
    assert features.runs_v2(SimpleNamespace()) is v2


def test_a_vllm_that_does_not_tell_its_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    with pytest.raises(LookupError, match="which model runner"):
        features.runs_v2(SimpleNamespace())


@pytest.mark.parametrize(
    ("parallel", "parts"),
    [
        ({"enable_dbo": True, "ubatch_size": 0}, 2),
        ({"enable_dbo": True, "ubatch_size": 4}, 2),  # as vLLM's own `num_ubatches`
        ({"enable_dbo": False, "ubatch_size": 3}, 3),
        ({"enable_dbo": True}, 2),
        ({"ubatch_size": 2}, 2),
        ({"ubatch_size": 1}, 1),
        ({"ubatch_size": 0}, 1),
        ({}, 1),
    ],
)
def test_microbatches_by_whatever_the_configuration_tells(parallel: dict[str, Any], parts: int) -> None:
    assert features.microbatches(SimpleNamespace(**parallel)) == parts


@pytest.mark.parametrize("parallel", [{"enable_dbo": True, "ubatch_size": 4}, {"ubatch_size": 3}, {}])
def test_microbatches_are_as_many_as_vllm_says(parallel: dict[str, Any]) -> None:
    config = ParallelConfig(**parallel)
    assert features.microbatches(config) == (config.num_ubatches if config.use_ubatching else 1)


def test_a_vllm_that_runs_microbatches_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert features.ubatching_module() is ubatching
    monkeypatch.delattr(ubatching, "_NUM_UBATCHES")
    with pytest.raises(LookupError, match="ubatching has no _NUM_UBATCHES"):
        features.ubatching_module()
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.ubatching", None)
    monkeypatch.delattr(worker_package, "ubatching")
    with pytest.raises(LookupError, match="this vLLM has no vllm"):
        features.ubatching_module()


def test_the_classes_of_the_installed_vllm() -> None:
    assert features.moe_class() is vllm_layer.MoERunner
    assert features.source_class() is routed_experts_capturer.RoutedExpertsCaptureSource
    assert features.sink_class() is routed_experts_capturer.RoutedExpertsSink


def test_classes_that_vllm_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(routed_experts_capturer, "RoutedExpertsCaptureSource")
    monkeypatch.delattr(routed_experts_capturer, "RoutedExpertsSink")
    assert features.source_class() is None
    assert features.sink_class() is None


def test_a_layer_that_holds_its_router_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Helper:
        """`MoERunner` as in vLLM 0.20 to 0.23: no property `is_monolithic`."""

    class FusedMoE(torch.nn.Module):
        quant_method = SimpleNamespace(is_monolithic=True, moe_kernel=None)

    monkeypatch.setattr(vllm_layer, "MoERunner", Helper)
    with pytest.raises(LookupError, match="no MoE layers"):
        features.moe_class()
    monkeypatch.setattr(vllm_layer, "FusedMoE", FusedMoE, raising=False)
    assert features.moe_class() is FusedMoE
    assert features.is_monolithic(FusedMoE())
    assert features.monolithic_kernel(FusedMoE()) is None
