"""Kernels and modules that route by themselves: vLLM's own code hands their ids to the capturer."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe import modular_kernel as mk
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
    RoutedExpertsCapturer,
    RoutedExpertsCaptureSource,
    bind_routed_experts_capturer,
)
from vllm.models.deepseek_v4.nvidia.model import DeepseekV4MegaMoEExperts

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam import slots
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.seam.survey import survey_model
from moescope.capture.wire import MoeLayer, unpack_ids
from tests.capture.seam.configs import config
from tests.capture.seam.held_callbacks import EXPERTS, TOP_K, holding, kernel_of, made_anew

CPU = torch.device("cpu")


class RoutesInside(mk.FusedMoEExpertsMonolithic):
    """A monolithic kernel as far as a CPU can run one: it routes, and writes the ids to the given tensor."""

    can_replay = True

    def __init__(self) -> None:
        self.moe_config = SimpleNamespace(
            max_num_tokens=16, use_ep=False, ep_size=1, dp_size=1, experts_per_token=TOP_K, device=CPU
        )

    def supports_routing_replay_capture(self) -> bool:
        return self.can_replay

    def apply(self, **arguments: Any) -> torch.Tensor:
        out = arguments["routing_replay_out"]
        if out is not None:
            out[:] = arguments["router_logits"].topk(TOP_K, dim=-1).indices.to(out.dtype)
        return arguments["hidden_states"]

    expects_unquantized_inputs = True
    activation_format = workspace_shapes = moe_problem_size = None  # type: ignore[assignment]


class PassesOn:
    """Stands for what exchanges tokens with other ranks; here there are none."""

    def prepare(self, hidden: torch.Tensor, router_logits: torch.Tensor, **_: Any) -> Any:
        return hidden, None, router_logits

    def finalize(self, out: torch.Tensor) -> torch.Tensor:
        return out


def monolithic(layer: int, **kernel: Any) -> Any:
    """A real `MoERunner` with vLLM's own driver of monolithic kernels."""
    made = MoERunner.__new__(MoERunner)
    torch.nn.Module.__init__(made)
    made.layer_name = f"model.layers.{layer}.mlp.experts"
    made.moe_config = SimpleNamespace(num_logical_experts=EXPERTS)
    made.router = None
    impl = mk.FusedMoEKernelMonolithicImpl.__new__(mk.FusedMoEKernelMonolithicImpl)
    RoutesInside.__abstractmethods__ = frozenset()
    impl.fused_experts = RoutesInside()
    impl.fused_experts.quant_config = None
    for name, value in kernel.items():
        setattr(impl.fused_experts, name, value)
    impl.prepare_finalize = PassesOn()
    made.routed_experts = SimpleNamespace(
        quant_method=SimpleNamespace(is_monolithic=True, moe_kernel=SimpleNamespace(impl=impl)),
        expert_map_manager=SimpleNamespace(ep_size=2, placement_strategy="linear"),
        routing_sink=None,
    )
    return made


def forward(runner: Any, logits: torch.Tensor) -> None:
    """Run a layer as vLLM's quantised methods do."""
    runner.routed_experts.quant_method.moe_kernel.impl.apply(
        hidden_states=logits,
        w1=None,
        w2=None,
        router_logits=logits,
        activation=None,
        global_num_experts=EXPERTS,
        expert_map=None,
        apply_router_weight_on_input=False,
        routing_sink=runner.routed_experts.routing_sink,
    )


class Capture:
    """A capturer bound to the layers of a model."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        self.model = torch.nn.ModuleList(modules)
        self.survey = survey_model(self.model, config())
        self.buffers = CountBuffers([layer.spec for layer in self.survey.routed], CPU)
        self.capturer = RoutingCapturer(self.buffers, Ranks(), lambda: StepRows(None, None))
        self.binding = RouterBinding(self.survey.routed, self.capturer, self.survey.look_again)
        self.binding.bind()

    def counts(self) -> list[list[int]]:
        return [self.buffers.counts_of(i).tolist() for i in range(len(self.buffers.layers))]


def expected(logits: torch.Tensor, valid: int) -> list[int]:
    return torch.bincount(logits[:valid].topk(TOP_K).indices.flatten(), minlength=EXPERTS).tolist()


def step(capture: Capture, logits: list[torch.Tensor], valid: int) -> None:
    capture.capturer.begin_step(valid)
    for module, layer in zip(capture.model, logits, strict=True):
        forward(module, layer)
    capture.capturer.end_step()


def test_a_monolithic_kernel_that_writes_its_ids_is_counted() -> None:
    capture = Capture(monolithic(3), monolithic(5))
    assert [layer.spec for layer in capture.survey.routed] == [
        MoeLayer(3, EXPERTS, TOP_K),
        MoeLayer(5, EXPERTS, TOP_K),
    ]
    logits = [torch.randn(7, EXPERTS), torch.randn(7, EXPERTS)]
    step(capture, logits, valid=5)
    assert capture.counts() == [expected(layer, 5) for layer in logits]
    capture.binding.unbind()
    assert all(module.routed_experts.routing_sink is None for module in capture.model)


def test_vllms_own_capture_takes_the_sink_and_both_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(monolithic(0))
    theirs: list[torch.Tensor] = []
    own = RoutedExpertsCapturer.__new__(RoutedExpertsCapturer)
    monkeypatch.setattr(own, "capture", lambda _, ids: theirs.append(ids.clone()), raising=False)
    bind_routed_experts_capturer(capture.model, own)
    assert capture.binding.bind() == 1
    logits = torch.randn(4, EXPERTS)
    step(capture, [logits], valid=4)
    assert capture.counts() == [expected(logits, 4)]
    assert theirs[0].tolist() == logits.topk(TOP_K).indices.tolist()


def test_sinks_that_would_take_much_memory_share_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SINK_BYTES", 100)  # a sink takes 64
    capture = Capture(*(monolithic(layer) for layer in range(4)))
    sinks = [module.routed_experts.routing_sink.buffer.data_ptr() for module in capture.model]
    assert len(set(sinks)) == 2
    logits = [torch.randn(7, EXPERTS) for _ in range(4)]
    step(capture, logits, valid=7)
    assert capture.counts() == [expected(layer, 7) for layer in logits]


def test_a_kernel_that_cannot_write_its_ids_and_one_under_eplb_stay_uncovered() -> None:
    found = survey_model(torch.nn.ModuleList([monolithic(0, can_replay=False)]), config())
    assert found.routed == ()
    assert "can't write its ids" in found.uncovered[0].reason
    found = survey_model(torch.nn.ModuleList([monolithic(0)]), config(enable_eplb=True))
    assert "under EPLB" in found.uncovered[0].reason


def mega_moe(layer: int) -> Any:
    """A real module of DeepSeek V4 without its weights; its kernels need a GPU."""
    made = DeepseekV4MegaMoEExperts.__new__(DeepseekV4MegaMoEExperts)
    torch.nn.Module.__init__(made)
    made.prefix = f"model.layers.{layer}.ffn.experts"
    made.capture_fn = None
    made.num_experts = made.num_logical_experts = EXPERTS
    made.num_local_experts = EXPERTS // 2
    made.top_k = TOP_K
    return made


def test_a_module_that_routes_by_itself_is_counted_where_it_says_over_how_many_experts() -> None:
    module = mega_moe(4)
    assert isinstance(module, RoutedExpertsCaptureSource)
    capture = Capture(module)
    assert [layer.spec for layer in capture.survey.routed] == [MoeLayer(4, EXPERTS, TOP_K)]
    assert capture.survey.placement is not None
    [table] = capture.survey.placement.tables
    assert unpack_ids(table.physical_to_ep_rank).tolist() == [0] * 4 + [1] * 4
    ids = torch.tensor([[0, 3], [3, 7]])
    capture.capturer.begin_step(2)
    module.capture_fn(ids)
    capture.capturer.end_step()
    assert capture.counts() == [torch.bincount(ids.flatten(), minlength=EXPERTS).tolist()]
    capture.binding.unbind()
    assert module.capture_fn is None


def test_a_kernel_that_holds_its_callback_is_counted_and_vllms_own_callback_is_called() -> None:
    seen: list[torch.Tensor] = []
    modules = [holding(3), holding(5)]
    kernel_of(modules[0]).set_capture_fn(seen.append)
    buffer = kernel_of(modules[0])._routing_replay_buffer
    capture = Capture(*modules)
    assert [layer.spec.layer for layer in capture.survey.routed] == [3, 5]
    logits = [torch.randn(6, EXPERTS) for _ in range(2)]
    capture.capturer.begin_step(5)
    for module, layer in zip(modules, logits, strict=True):
        kernel_of(module).runs(layer)
    capture.capturer.end_step()
    assert capture.counts() == [expected(layer, 5) for layer in logits]
    assert len(seen) == 1
    assert kernel_of(modules[0])._routing_replay_buffer is buffer  # a captured graph writes to it
    capture.binding.unbind()
    assert kernel_of(modules[0]).routing_replay_capture_fn == seen.append
    assert kernel_of(modules[1]).routing_replay_capture_fn is None


def test_kernels_that_hold_their_callbacks_share_a_buffer_where_many_would_take_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "SINK_BYTES", 16 * TOP_K * 2)
    modules = [holding(layer) for layer in (1, 2, 3)]
    capture = Capture(*modules)
    first, second, third = (kernel_of(module)._routing_replay_buffer for module in modules)
    assert first is not second
    assert second is third
    logits = [torch.randn(4, EXPERTS) for _ in modules]
    for tokens in (0, 3):  # the first pass, which counts nothing, shows that references are not safe
        capture.capturer.begin_step(tokens)
        for module, layer in zip(modules, logits, strict=True):
            kernel_of(module).runs(layer)
        capture.capturer.end_step()
    assert capture.counts() == [expected(layer, 3) for layer in logits]


def test_a_buffer_of_this_ranks_rows_only_is_replaced_by_one_that_holds_all_ranks_rows() -> None:
    """vLLM 0.27 makes it too small where the exchange gathers rows, and raises in the forward pass."""
    module = holding(3)
    kernel_of(module).moe_config = SimpleNamespace(
        experts_per_token=TOP_K, max_num_tokens=16, use_ep=True, ep_size=2, dp_size=1
    )
    Capture(module)
    buffer = kernel_of(module)._routing_replay_buffer
    assert buffer is not None
    assert (buffer.shape, buffer.dtype) == ((32, TOP_K), torch.int16)


def test_a_kernel_made_anew_gets_the_callback_and_the_old_ones_buffer() -> None:
    module = holding(3)
    capture = Capture(module)
    old = kernel_of(module)
    buffer = old._routing_replay_buffer
    assert buffer is not None
    address, gone = buffer.data_ptr(), weakref.ref(old)
    made_anew(module)
    capture.binding.bind()
    assert kernel_of(module).routing_replay_capture_fn is None  # ids that nobody would have counted
    assert capture.binding.renew() is None
    assert capture.binding.bind() == 1
    logits = torch.randn(4, EXPERTS)
    capture.capturer.begin_step(4)
    kernel_of(module).runs(logits)
    capture.capturer.end_step()
    assert capture.counts() == [expected(logits, 4)]
    # A CUDA graph of the old kernel writes there.
    assert kernel_of(module)._routing_replay_buffer.data_ptr() == address  # type: ignore[union-attr]
    del buffer, old
    assert gone() is None


def test_thousands_of_reloads_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SINK_BYTES", 3 * 16 * TOP_K * 2)  # room for two layers and one more
    modules = [holding(3), holding(5)]
    capture = Capture(*modules)
    buffers = [kernel_of(module)._routing_replay_buffer for module in modules]
    kernels = [weakref.ref(kernel_of(module)) for module in modules]
    for _ in range(2000):
        for module in modules:
            made_anew(module)
            kernels.append(weakref.ref(kernel_of(module)))
        assert capture.binding.renew() is None
        capture.binding.bind()
    assert all(
        kernel_of(module)._routing_replay_buffer is buffer
        for module, buffer in zip(modules, buffers, strict=True)
    )
    assert sum(kernel() is not None for kernel in kernels) == len(modules)
    assert capture.survey.why_no_references() is None


def test_a_buffer_that_became_too_small_stays_for_the_graphs_that_write_to_it() -> None:
    module = holding(3)
    capture = Capture(module)
    small = weakref.ref(kernel_of(module)._routing_replay_buffer)
    made_anew(module)
    kernel_of(module).moe_config = SimpleNamespace(
        experts_per_token=TOP_K, max_num_tokens=16, use_ep=True, ep_size=2, dp_size=1
    )
    assert capture.binding.renew() is None
    capture.binding.bind()
    assert kernel_of(module)._routing_replay_buffer.shape == (32, TOP_K)  # type: ignore[union-attr]
    assert small() is not None


@pytest.mark.parametrize("broken", ["supports_routing_replay_capture", "set_capture_fn"])
def test_a_layer_that_raises_costs_that_layer_only(broken: str) -> None:
    def raises(*_: Any) -> None:
        raise RuntimeError("not as it was")

    modules = [holding(3), holding(5)]
    setattr(kernel_of(modules[1]), broken, raises)
    capture = Capture(*modules)
    assert [layer.spec.layer for layer in capture.survey.routed] == [3]
    [uncovered] = capture.survey.uncovered
    assert uncovered.layer == 5
    assert "RuntimeError('not as it was')" in uncovered.reason


def test_a_placement_that_cannot_be_read_costs_the_placement_only() -> None:
    module = monolithic(3)
    module.routed_experts.expert_map_manager = SimpleNamespace(ep_size=2)
    survey = survey_model(torch.nn.ModuleList([module]), config())
    assert [layer.spec.layer for layer in survey.routed] == [3]
    assert survey.placement is None
    assert survey.why_no_placement is not None
    assert "placement_strategy" in survey.why_no_placement
