"""TRT-LLM kernels route inside and write their ids to a sink: vLLM's classes, without a Blackwell GPU."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe.prepare_finalize import naive_dp_ep
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam import slots
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.seam.survey import survey_model
from tests.capture.seam import blackwell
from tests.capture.seam.blackwell import EXPERTS, MOST, TOP_K, counts_of, emulate_flashinfer, forward, layer
from tests.capture.seam.configs import config


class Server:
    """A capturer bound to a model of such layers."""

    def __init__(self, *modules: Any, ranks: Ranks | None = None, across: list[int] | None = None) -> None:
        self.model = torch.nn.ModuleList(modules)
        self.survey = survey_model(self.model, config(use_ubatching=False))
        self.buffers = CountBuffers([found.spec for found in self.survey.routed], blackwell.CPU)
        self.capturer = RoutingCapturer(self.buffers, ranks or Ranks(), lambda: StepRows(across, None))
        self.binding = RouterBinding(self.survey.routed, self.capturer, self.survey.look_again)
        self.binding.bind()

    def step(self, *logits: torch.Tensor, tokens: int) -> None:
        self.capturer.begin_step(tokens)
        for module, of_layer in zip(self.model, logits, strict=True):
            forward(module, of_layer)
        self.capturer.end_step()
        assert self.capturer.disabled_reason is None

    def counts(self) -> list[list[int]]:
        return [self.buffers.counts_of(i).tolist() for i in range(len(self.buffers.layers))]


@pytest.fixture(autouse=True)
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_flashinfer(monkeypatch)


def logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, EXPERTS)


def test_int16_ids_of_a_padded_batch_are_counted_and_a_larger_buffer_does_no_harm() -> None:
    server = Server(layer(3), layer(5))
    sinks = [module.routed_experts.routing_sink for module in server.model]
    assert [sink.buffer.dtype for sink in sinks] == [torch.int16] * 2
    full, padded = [logits(MOST), logits(MOST)], [logits(8), logits(8)]
    server.step(*full, tokens=MOST)
    server.step(*padded, tokens=5)  # the buffers still have the rows of the step before beyond the batch
    expected = [
        torch.tensor(counts_of(a)) + torch.tensor(counts_of(b[:5])) for a, b in zip(full, padded, strict=True)
    ]
    assert server.counts() == [counts.tolist() for counts in expected]


def test_gathered_rows_of_other_dp_ranks_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, others = logits(4), logits(6)
    gathered: list[int] = []

    def dispatch(hidden: torch.Tensor, own: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        gathered.append(len(own))
        return torch.cat([hidden.new_zeros(6, hidden.shape[1]), hidden]), torch.cat([others, own])

    group = SimpleNamespace(dispatch_router_logits=dispatch, combine=lambda out, **_: out[6:])
    monkeypatch.setattr(naive_dp_ep, "get_ep_group", lambda: group)
    of_two = blackwell.moe_config(dp_size=2, dp_rank=1)
    server = Server(layer(0, of_two), ranks=Ranks(1, 2, 0, 1), across=[6, 4])
    assert len(server.model[0].routed_experts.routing_sink.buffer) == 2 * MOST
    server.step(mine, tokens=3)
    assert gathered == [4]
    assert server.counts() == [counts_of(mine[:3])]


def test_layers_that_share_a_buffer_say_that_their_ids_must_not_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Server(layer(0), layer(1)).survey.why_no_references() is None
    monkeypatch.setattr(slots, "SINK_BYTES", MOST * TOP_K * 2)
    server = Server(layer(0), layer(1), layer(2))
    assert server.survey.why_no_references() == "kernels of several layers write their ids to one place"
    rows = [logits(7) for _ in range(3)]
    server.step(*rows, tokens=7)
    assert server.counts() == [counts_of(of_layer) for of_layer in rows]


def test_kernels_made_anew_with_the_weights_go_on_with_the_same_sinks() -> None:
    server = Server(layer(0), layer(1))
    before = [module.routed_experts.routing_sink for module in server.model]
    for module in server.model:
        module.routed_experts.quant_method.moe_kernel = blackwell.kernel_of(module.moe_config)
    assert server.binding.renew() is None
    assert server.binding.bind() == 0
    assert [module.routed_experts.routing_sink for module in server.model] == before
    rows = [logits(5), logits(5)]
    server.step(*rows, tokens=5)
    assert server.counts() == [counts_of(of_layer) for of_layer in rows]


def test_a_reload_to_a_kernel_that_writes_no_ids_leaves_no_sink_that_vllm_would_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(layer(0), layer(1))
    sink = server.model[1].routed_experts.routing_sink
    experts = server.model[1].routed_experts.quant_method.moe_kernel.fused_experts
    monkeypatch.setattr(experts, "supports_routing_replay_capture", lambda: False)
    with pytest.raises(ValueError, match="not supported with monolithic"):
        forward(server.model[1], logits(3))  # what happened to the server
    reason = server.binding.renew()
    assert reason is not None
    assert "layer 1 can't be counted any more" in reason
    assert "it can't write its ids to a routing sink" in reason
    forward(server.model[1], logits(3))
    assert server.model[1].routed_experts.routing_sink is None
    buffer = weakref.ref(sink.buffer)
    del sink
    assert buffer() is not None  # graphs may write there


def test_a_reload_to_a_kernel_that_calls_the_router_is_counted_through_the_router() -> None:
    router = CPURouter(top_k=TOP_K, global_num_experts=EXPERTS)
    server = Server(layer(0, router=router))
    server.model[0].routed_experts.quant_method = SimpleNamespace(is_monolithic=False)
    server.binding.renew()
    assert server.binding.bind() == 1
    assert server.model[0].routed_experts.routing_sink is None
    rows = logits(6)
    server.step(rows, tokens=6)
    assert server.counts() == [counts_of(rows)]
    server.model[0].routed_experts.quant_method = blackwell.Method(
        blackwell.kernel_of(server.model[0].moe_config)
    )
    assert server.binding.renew() is None
    server.binding.bind()
    assert router.capture_fn is None
    server.step(rows, tokens=6)
    assert server.counts() == [(2 * torch.tensor(counts_of(rows))).tolist()]


def test_a_reload_that_changes_the_experts_ends_the_layer() -> None:
    router = CPURouter(top_k=TOP_K, global_num_experts=EXPERTS)
    server = Server(layer(0, router=router))
    server.model[0].routed_experts.quant_method = SimpleNamespace(is_monolithic=False)
    router.top_k = 3
    reason = server.binding.renew()
    assert reason is not None
    assert "top_k=3" in reason
