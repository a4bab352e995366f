"""Which MoE layers are covered, and why the others are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import ParallelConfig
from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter
from vllm.model_executor.models.utils import StageMissingLayer
from vllm.v1.worker import ubatching

from moescope.capture.seam.survey import MoeSurvey, survey_model
from moescope.capture.wire import unpack_ids
from tests.capture.seam.configs import config
from tests.capture.seam.runners import in_layers, runner


def survey(*modules: Any, **changes: Any) -> MoeSurvey:
    return survey_model(torch.nn.ModuleList(modules), config(**changes))


def test_layers_are_the_models_indices_in_rising_order_and_dense_layers_are_none() -> None:
    found = survey(runner(5), torch.nn.Linear(2, 2), runner(1, experts=6))
    assert [(layer.spec.layer, layer.spec.num_experts, layer.spec.top_k) for layer in found.routed] == [
        (1, 6, 2),
        (5, 8, 2),
    ]
    assert found.uncovered == ()


def test_the_models_depth_is_that_of_its_config_or_not_known() -> None:
    model = SimpleNamespace(hf_text_config=SimpleNamespace(), get_total_num_hidden_layers=lambda: 7)
    assert survey(runner(5), model=model).decoder_layers == 7
    model.get_total_num_hidden_layers = lambda: 1 // 0
    assert survey(runner(5), model=model).decoder_layers == 0


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


@pytest.mark.parametrize("changes", [{"enable_dbo": True}, {"ubatch_size": 3}])
def test_layers_are_covered_where_steps_are_split(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(survey(runner(0), runner(3), **changes).routed) == 2
    monkeypatch.delattr(ubatching, "_CURRENT_CONTEXTS")
    found = survey(runner(0), runner(3), **changes)
    assert found.routed == ()
    assert found.uncovered[0].reason == (
        "microbatches (DBO) can't be told apart: this vLLM's ubatching has no _CURRENT_CONTEXTS"
    )


def test_decode_context_parallelism_leaves_the_rows_as_they_are() -> None:
    """It splits keys and values. vLLM takes its ranks from those of TP, which all route the whole batch."""
    parallel = ParallelConfig(tensor_parallel_size=4, decode_context_parallel_size=2)
    assert parallel.world_size == 4
    assert len(survey(runner(0), runner(3), decode_context_parallel_size=2).routed) == 2


def test_two_blocks_of_one_layer_are_not_added_up() -> None:
    # Peers' bug (vLLM #48622): a draft model's layer 0 over the target's.
    found = survey(runner(0), runner(0), runner(1))
    assert [layer.spec.layer for layer in found.routed] == [1]
    assert found.uncovered[0].reason == "two MoE blocks share this layer's index"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ubatch_size": 9}, "9 microbatches (DBO) are not supported: a step may have 8"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism is not supported: its ranks"),
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


@pytest.mark.parametrize(
    ("method", "v2"), [("ngram", False), ("mtp", False), ("eagle3", True), ("ngram_gpu", True)]
)
def test_drafts_that_are_all_computed_are_counted(method: str, v2: bool) -> None:
    assert len(survey(runner(0), speculative=SimpleNamespace(method=method), v2=v2).routed) == 1


def test_layers_placed_alike_share_a_table() -> None:
    found = survey(runner(0), runner(1), runner(2, experts=4))
    assert found.placement is not None
    assert found.placement.table_of_layer == [0, 0, 1]


@pytest.mark.parametrize("changes", [{"enable_expert_parallel": False}, {"enable_eplb": True}])
def test_no_placement_is_claimed_where_none_is_known(changes: dict[str, bool]) -> None:
    found = survey(runner(0), **changes)
    assert len(found.routed) == 1
    assert found.placement is None


def said(text: Any, depth: int, stage: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """The part of vLLM's configuration that has the model's config, and this stage's span of layers."""
    return {
        "model": SimpleNamespace(
            hf_text_config=text,
            get_total_num_hidden_layers=lambda: depth,
            get_layers_start_end_indices=lambda _: stage,
        )
    }


DEEPSEEK = SimpleNamespace(model_type="deepseek_v3", n_routed_experts=8, first_k_dense_replace=1)


class Unknown(torch.nn.Module):
    """A block of experts that nothing here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.everything = torch.nn.Parameter(torch.empty(64, 4))


def dense() -> torch.nn.Module:
    made = torch.nn.Module()
    made.gate_up_proj, made.down_proj = torch.nn.Linear(4, 32), torch.nn.Linear(16, 4)
    return made


def test_layers_of_the_config_that_were_not_found_are_absent() -> None:
    model = in_layers(dense(), runner(1), Unknown(), Unknown())
    found = survey_model(model, config(**said(DEEPSEEK, 4)))
    assert [layer.spec.layer for layer in found.routed] == [1]
    assert [layer.layer for layer in found.absent] == [2, 3]
    assert found.absent[0].reason == (
        "by the model's config (first_k_dense_replace=1) an MoE layer of up to 8 experts; nothing that "
        "routes was found in it (Unknown)"
    )


def test_a_layer_that_surely_is_dense_is_never_absent_whatever_the_config_says() -> None:
    found = survey_model(in_layers(dense(), runner(1), dense(), runner(3)), config(**said(DEEPSEEK, 4)))
    assert found.absent == ()


def test_layers_of_other_pipeline_stages_are_not_absent() -> None:
    model = in_layers(None, None, runner(2), Unknown())
    found = survey_model(model, config(**said(DEEPSEEK, 4), pipeline_parallel_size=2))
    assert [layer.layer for layer in found.absent] == [3]


def test_a_model_without_a_list_of_layers_is_held_against_vllms_own_span_of_the_stage() -> None:
    vllm_config = config(**said(DEEPSEEK, 6, stage=(3, 6)), pipeline_parallel_size=2)
    found = survey_model(torch.nn.ModuleList([runner(4)]), vllm_config)
    assert [layer.layer for layer in found.absent] == [3, 5]


def test_a_config_that_does_not_say_which_layers_says_only_that_none_was_found() -> None:
    text = SimpleNamespace(model_type="never_seen", num_experts=8)
    nothing = survey_model(in_layers(Unknown(), Unknown()), config(**said(text, 2)))
    assert nothing.absent == ()
    assert nothing.absent_unnamed == (
        "the model's config has 8 experts and doesn't say in which layers; no MoE layer was found among "
        "layers 0 to 1"
    )
    some = survey_model(in_layers(Unknown(), runner(1)), config(**said(text, 2)))
    all_dense = survey_model(in_layers(dense(), dense()), config(**said(text, 2)))
    assert some.absent_unnamed == all_dense.absent_unnamed == ""


class Fused(torch.nn.Module):
    """Owns its experts and chooses among them, in one kernel."""

    def __init__(self, experts: int = 8, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = experts, top_k
        self.w13_weight = torch.nn.Parameter(torch.empty(experts, 8, 4))
        self.w2_weight = torch.nn.Parameter(torch.empty(experts, 4, 4))


class Stacked(torch.nn.Module):
    """Says nothing of experts, but has a matrix for each of 8 in two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.empty(8, 8, 4))
        self.down = torch.nn.Parameter(torch.empty(8, 4, 4))


class Listed(torch.nn.Module):
    """A router and a list of experts, as models of transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(4, 8)
        self.experts = torch.nn.ModuleList(dense() for _ in range(8))


class Freed(torch.nn.Module):
    """Gave its weights away after loading, as mega MoE modules do."""

    num_local_experts = 4

    def __init__(self) -> None:
        super().__init__()
        self.n_routed_experts, self.num_experts_per_tok = 8, 2


@pytest.mark.parametrize("block", [Fused, Stacked, Listed, Freed])
def test_a_module_that_routes_by_itself_is_uncovered_with_its_class(block: type[torch.nn.Module]) -> None:
    model = in_layers(dense(), runner(1), block(), runner(3))
    found = survey_model(model, config(**said(DEEPSEEK, 4)))
    assert [layer.spec.layer for layer in found.routed] == [1, 3]
    assert [(layer.layer, layer.reason) for layer in found.uncovered] == [
        (2, f"{block.__name__} routes by itself, without vLLM's MoERunner or a source of its ids")
    ]
    assert found.absent == ()


def test_what_is_beside_or_inside_a_runner_is_no_block_of_its_own() -> None:
    holder = torch.nn.Module()
    holder.num_experts, holder.top_k = 8, 2
    holder.experts, holder.sinks = runner(1), Stacked()
    found = survey_model(in_layers(dense(), holder), config(**said(DEEPSEEK, 2)))
    assert [layer.spec.layer for layer in found.routed] == [1]
    assert found.uncovered == ()


def test_modules_of_a_vision_tower_are_no_decoder_layers() -> None:
    model = in_layers(dense(), runner(1))
    model.visual = in_layers(Fused(), Fused())
    model.get_language_model = lambda: model.model
    assert survey_model(model, config(**said(DEEPSEEK, 2))).uncovered == ()


def test_a_block_without_a_layers_number_is_told_without_one() -> None:
    model = torch.nn.Module()
    model.block = Fused()
    found = survey_model(model, config())
    assert (found.uncovered, found.absent) == ((), ())
    assert found.absent_unnamed.startswith("Fused routes by itself")


def broken(layer: int, **parts: Any) -> Any:
    made = runner(layer)
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def test_a_runner_that_can_not_be_looked_into_costs_its_own_layer_only() -> None:
    model = in_layers(runner(0), broken(1, moe_config=None), broken(2, layer_name="mlp.experts"), runner(3))
    found = survey_model(model, config())
    assert [layer.spec.layer for layer in found.routed] == [0, 3]
    assert [layer.layer for layer in found.uncovered] == [1, 2]
    assert found.uncovered[0].reason.startswith("MoERunner is not as moescope knows it: AttributeError")
    assert found.uncovered[1].reason.startswith("MoERunner can't say which layer it is")


def test_a_runner_without_any_number_is_told_without_one() -> None:
    model = torch.nn.Module()
    model.experts = broken(0, layer_name="experts")
    found = survey_model(model, config())
    assert (found.routed, found.uncovered) == ((), ())
    assert found.absent_unnamed.startswith("MoERunner can't say which layer it is")


def test_a_config_that_can_not_be_read_costs_the_comparison_only() -> None:
    class Broken:
        @property
        def hf_text_config(self) -> Any:
            raise RuntimeError("no config")

    found = survey_model(in_layers(runner(0)), config(model=Broken()))
    assert len(found.routed) == 1
    assert "can't be told: RuntimeError('no config')" in found.absent_unnamed


def test_a_placement_that_can_not_be_read_costs_no_layer() -> None:
    found = survey_model(in_layers(runner(0, placement_strategy="never heard of")), config())
    assert len(found.routed) == 1
    assert found.placement is None
    assert found.why_no_placement is not None
    assert found.why_no_placement.startswith("where vLLM placed the experts can't be read")


def test_a_kernel_of_gpt_oss_names_the_backends_that_would_be_counted() -> None:
    kernels = pytest.importorskip("vllm.model_executor.layers.fused_moe.experts.gpt_oss_triton_kernels_moe")
    kernel = kernels.OAITritonMxfp4ExpertsMonolithic.__new__(kernels.OAITritonMxfp4ExpertsMonolithic)
    reason = survey(runner(0, monolithic=True, kernel=kernel)).uncovered[0].reason
    assert "monolithic kernel OAITritonMxfp4ExpertsMonolithic" in reason
    assert "--moe-backend marlin and --moe-backend flashinfer_cutlass" in reason


@pytest.mark.parametrize("told", [True, False])
def test_an_instance_that_only_encodes_lacks_no_layers(told: bool) -> None:
    text = SimpleNamespace(model_type="qwen3_moe", num_experts=8, num_hidden_layers=2)
    settings = config(model=SimpleNamespace(hf_text_config=text, get_total_num_hidden_layers=lambda: 2))
    decoder: torch.nn.Module = StageMissingLayer("language_model")
    if told:  # a real language model, whose layers are placeholders
        settings.is_mm_encoder_only = True
        decoder = in_layers(StageMissingLayer("layer"), StageMissingLayer("layer"))
    model = torch.nn.Module()
    model.get_language_model = lambda: decoder
    found = survey_model(model, settings)
    assert (found.routed, found.uncovered, found.absent, found.absent_unnamed) == ((), (), (), "")
