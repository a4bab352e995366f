"""Which MoE layers are covered, and why the others are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter

from moescope.capture.seam.survey import MoeSurvey, survey_model
from moescope.capture.wire import unpack_ids
from tests.capture.seam.configs import config


class TrtLlmLikeKernel:
    """Stands for a kernel that can't run here: it routes inside."""


def runner(
    layer: int, experts: int = 8, *, router: Any = None, monolithic: bool = False, **placement: Any
) -> Any:
    """A real `MoERunner` without the weights and kernels that its constructor would make."""
    made = MoERunner.__new__(MoERunner)
    torch.nn.Module.__init__(made)
    made.layer_name = f"model.layers.{layer}.mlp.experts"
    made.moe_config = SimpleNamespace(num_logical_experts=experts)
    made.router = router or CPURouter(top_k=2, global_num_experts=experts)
    kernel = SimpleNamespace(impl=SimpleNamespace(fused_experts=TrtLlmLikeKernel()))
    made.routed_experts = SimpleNamespace(
        quant_method=SimpleNamespace(is_monolithic=monolithic, moe_kernel=kernel),
        expert_map_manager=SimpleNamespace(**({"ep_size": 2, "placement_strategy": "linear"} | placement)),
    )
    return made


def survey(*modules: Any, **changes: Any) -> MoeSurvey:
    return survey_model(torch.nn.ModuleList(modules), config(**changes))


def test_layers_are_the_models_indices_in_rising_order_and_dense_layers_are_none() -> None:
    found = survey(runner(5), torch.nn.Linear(2, 2), runner(1, experts=6))
    assert [(layer.spec.layer, layer.spec.num_experts, layer.spec.top_k) for layer in found.routed] == [
        (1, 6, 2),
        (5, 8, 2),
    ]
    assert found.uncovered == ()


def test_a_monolithic_kernel_is_uncovered_and_has_no_counts() -> None:
    # Peers' bug (vLLM #44116, #49184, #54730): such layers reported expert 0, or zeros.
    found = survey(runner(0), runner(1, monolithic=True))
    assert [layer.spec.layer for layer in found.routed] == [0]
    assert [layer.layer for layer in found.uncovered] == [1]
    assert "monolithic kernel TrtLlmLikeKernel" in found.uncovered[0].reason


def test_a_router_without_a_callback_is_uncovered() -> None:
    class OtherRouter(FusedMoERouter):
        def set_capture_fn(self, capture_fn: Any) -> None: ...
        def _select_experts(self, *args: Any, **kwargs: Any) -> Any: ...

        @property
        def routing_method_type(self) -> Any: ...

    found = survey(runner(2, router=OtherRouter()))
    assert found.uncovered[0].reason == "router OtherRouter has no callback"


def test_a_module_that_routes_by_itself_is_uncovered_unless_it_says_over_how_many_experts() -> None:
    class MegaMoe(torch.nn.Module):
        layer_id = 7
        capture_fn = None

    found = survey(runner(2), MegaMoe())
    assert [(layer.layer, layer.reason) for layer in found.uncovered] == [
        (7, "MegaMoe routes by itself and doesn't say over how many experts")
    ]


def test_two_blocks_of_one_layer_are_not_added_up() -> None:
    # Peers' bug (vLLM #48622): a draft model's layer 0 over the target's.
    found = survey(runner(0), runner(0), runner(1))
    assert [layer.spec.layer for layer in found.routed] == [1]
    assert found.uncovered[0].reason == "two MoE blocks share this layer's index"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_ubatching": True}, "micro-batching"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        # Steps of fewer rows than the scheduler said: the rest would be padding that counts.
        ({"speculative": SimpleNamespace(method="ngram_gpu")}, "ngram_gpu"),
        (
            {"speculative": SimpleNamespace(method="dspark", enable_adaptive_verification=True)},
            "adaptive verification",
        ),
    ],
)
def test_what_would_be_miscounted_is_not_counted(changes: dict[str, Any], reason: str) -> None:
    found = survey(runner(0), runner(3), **changes)
    assert found.routed == ()
    assert [layer.layer for layer in found.uncovered] == [0, 3]
    assert reason in found.uncovered[0].reason


@pytest.mark.parametrize(
    ("strategy", "ep_size", "expected"),
    [
        ("linear", 2, {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}),
        ("round_robin", 2, {0: [0, 2, 4, 6], 1: [1, 3, 5, 7]}),
        ("linear", 3, {0: [0, 1, 2], 1: [3, 4, 5], 2: [6, 7]}),
    ],
)
def test_placement_is_vllms_own(strategy: str, ep_size: int, expected: dict[int, list[int]]) -> None:
    found = survey(runner(0, ep_size=ep_size, placement_strategy=strategy))
    assert found.placement is not None
    (table,) = found.placement.tables
    placed: dict[int, list[int]] = {}
    for logical, rank in zip(
        unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank), strict=True
    ):
        placed.setdefault(int(rank), []).append(int(logical))
    assert placed == expected


@pytest.mark.parametrize("method", ["ngram", "mtp", "eagle3"])
def test_drafts_that_are_all_computed_are_counted(method: str) -> None:
    assert len(survey(runner(0), speculative=SimpleNamespace(method=method)).routed) == 1


def test_layers_placed_alike_share_a_table() -> None:
    found = survey(runner(0), runner(1), runner(2, experts=4))
    assert found.placement is not None
    assert found.placement.table_of_layer == [0, 0, 1]


@pytest.mark.parametrize("changes", [{"enable_expert_parallel": False}, {"enable_eplb": True}])
def test_no_placement_is_claimed_where_none_is_known(changes: dict[str, bool]) -> None:
    found = survey(runner(0), **changes)
    assert len(found.routed) == 1
    assert found.placement is None
