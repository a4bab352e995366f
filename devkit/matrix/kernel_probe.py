"""Whether a monolithic kernel that can write its ids is counted: run by the Python of a vLLM release.

    .matrix/0.28.0/bin/python -m devkit.matrix.kernel_probe

Such kernels (TRT-LLM's) need a Blackwell GPU. So a kernel stands in for one that derives from vLLM's own base
class, routes on the CPU, and hands its ids over through that class's own methods or sink, as vLLM's do.
It prints one line: what became of it.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, Final

import torch
from vllm.model_executor.layers.fused_moe import modular_kernel as mk

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.features import moe_class
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.seam.survey import survey_model

EXPERTS: Final = 8
TOP_K: Final = 2
CPU: Final = torch.device("cpu")


class RoutesInside(mk.FusedMoEExpertsMonolithic):  # type: ignore[misc]
    """A monolithic kernel as far as a CPU can run one."""

    def __init__(self) -> None:
        """It has what vLLM's own methods read."""
        self.moe_config = SimpleNamespace(
            max_num_tokens=16, use_ep=False, ep_size=1, dp_size=1, experts_per_token=TOP_K, device=CPU
        )

    def supports_routing_replay_capture(self) -> bool:
        """As TRT-LLM's kernels from vLLM 0.27 on."""
        return True

    def route(self, logits: torch.Tensor, sink: Any) -> None:
        """Route, and hand the ids over in the way of this release, if it has one."""
        ids = logits.topk(TOP_K, dim=-1).indices
        if sink is not None:
            sink.buffer[: len(ids)] = ids
            sink.capture_fn(sink.buffer[: len(ids)])
        elif hasattr(self, "_maybe_make_routing_replay_buffer"):
            out = self._maybe_make_routing_replay_buffer(num_tokens=len(ids), device=CPU)
            if out is not None:
                out[: len(ids)] = ids
            self._maybe_dispatch_routing_replay(out, num_tokens=len(ids))


def moe_module(layer: int) -> Any:
    """A real MoE module of this release with such a kernel, as a model has it."""
    kind: Any = moe_class()
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.layer_name = f"model.layers.{layer}.mlp.experts"
    made.moe_config = SimpleNamespace(num_logical_experts=EXPERTS)
    made.router = None
    RoutesInside.__abstractmethods__ = frozenset()
    kernel = SimpleNamespace(impl=SimpleNamespace(fused_experts=RoutesInside()))
    method = SimpleNamespace(is_monolithic=True, moe_kernel=kernel)
    if kind.__name__ == "FusedMoE":  # before 0.24
        made.quant_method = method
        return made
    made.routed_experts = SimpleNamespace(quant_method=method)
    if not hasattr(mk.FusedMoEExpertsMonolithic, "set_capture_fn"):
        made.routed_experts.routing_sink = None
    return made


def main() -> None:
    """Count two layers' steps and compare."""
    logging.disable(logging.CRITICAL)
    modules = [moe_module(3), moe_module(5)]
    parallel = SimpleNamespace(
        prefill_context_parallel_size=1, enable_expert_parallel=False, enable_eplb=False
    )
    vllm_config = SimpleNamespace(parallel_config=parallel, speculative_config=None)
    survey = survey_model(torch.nn.ModuleList(modules), vllm_config)
    if survey.uncovered:
        print(f"not covered: {survey.uncovered[0].reason}")
        return
    buffers = CountBuffers([layer.spec for layer in survey.routed], CPU)
    capturer = RoutingCapturer(buffers, Ranks(), lambda: StepRows(None, None))
    RouterBinding(survey.routed, capturer).bind()
    expected = [torch.zeros(EXPERTS, dtype=torch.int64) for _ in modules]
    for tokens in (5, 1, 9):
        capturer.begin_step(tokens)
        for at, module in enumerate(modules):
            logits = torch.randn(tokens + 2, EXPERTS)  # two rows of padding
            experts = module.routed_experts
            kernel = experts.quant_method.moe_kernel.impl.fused_experts
            kernel.route(logits, getattr(experts, "routing_sink", None))
            expected[at] += torch.bincount(logits[:tokens].topk(TOP_K).indices.flatten(), minlength=EXPERTS)
        capturer.end_step()
    found = [buffers.counts_of(at).tolist() for at in range(len(modules))]
    way = type(survey.routed[0].router).__name__
    exact = found == [counts.tolist() for counts in expected]
    print(f"exact, by {way}" if exact else f"WRONG, by {way}: {found}")


if __name__ == "__main__":
    main()
