"""vLLM's own blocks that route without a `MoERunner` or a source of their ids: uncovered, by class."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.attention.mla_attention import MLAAttention

from moescope.capture.seam.survey import survey_model
from tests.capture.seam.configs import config
from tests.capture.seam.runners import in_layers
from tests.capture.seam.tiny_models import one_rank


@pytest.fixture(scope="module", autouse=True)
def _groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_rank(tmp_path_factory.mktemp("groups") / "store"):
        yield


def vllm_config() -> Any:
    """As much of it as these modules read."""
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=16),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )


def aiter_mega_moe() -> torch.nn.Module:
    mega_moe = pytest.importorskip("vllm.models.deepseek_v4.amd.mega_moe")
    return mega_moe.DeepseekV4AiterMegaMoEExperts(
        vllm_config(), num_experts=8, top_k=2, hidden_size=64, intermediate_size=64, swiglu_limit=None
    )


def xpu_mega_moe() -> torch.nn.Module:
    model = pytest.importorskip("vllm.models.deepseek_v4.xpu.model")
    return model.DeepseekV4MegaMoEExperts(
        vllm_config(),
        num_experts=8,
        num_local_experts=8,
        experts_start_idx=0,
        top_k=2,
        hidden_size=64,
        intermediate_size=64,
    )


def moondream() -> torch.nn.Module:
    model = pytest.importorskip("vllm.model_executor.models.moondream3")
    return model.Moondream3TextMoE(64, 32, num_experts=8, experts_per_token=2)


def nomic() -> torch.nn.Module:
    model = pytest.importorskip("vllm.model_executor.models.bert_with_rope")
    return model.NomicMoE(num_experts=8, top_k=2, hidden_size=64, intermediate_size=64, hidden_act="gelu")


def freed_xpu_mega_moe() -> torch.nn.Module:
    """As it is once its weights are in the kernel's own layout."""
    made = xpu_mega_moe()
    for name in [name for name, _ in made.named_parameters()]:
        setattr(made, name, None)
    return made


@pytest.mark.parametrize("make", [aiter_mega_moe, xpu_mega_moe, freed_xpu_mega_moe, moondream, nomic])
def test_it_is_uncovered_with_its_class(make: Any) -> None:
    with torch.device("meta"):
        block = make()
    found = survey_model(in_layers(torch.nn.Identity(), block), config())
    assert found.routed == ()
    assert [(layer.layer, layer.reason.partition(" ")[0]) for layer in found.uncovered] == [
        (1, type(block).__name__)
    ]
    assert "routes by itself" in found.uncovered[0].reason


EIGHT_EXPERTS = SimpleNamespace(
    hf_text_config=SimpleNamespace(num_experts=8), get_total_num_hidden_layers=lambda: 2
)


class MixtureOfValues(torch.nn.Module):
    """Experts inside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(8, 4, 4))


def latent_attention() -> torch.nn.Module:
    """MLA as it is once its weights are loaded: two stacks of matrices, one for each of its 8 heads."""
    made = MLAAttention.__new__(MLAAttention)
    torch.nn.Module.__init__(made)
    made.W_UK_T = torch.nn.Parameter(torch.zeros(8, 4, 6))
    made.W_UV = torch.nn.Parameter(torch.zeros(8, 6, 4))
    return made


def test_heads_of_attention_are_no_experts() -> None:
    decoder = in_layers(torch.nn.Sequential(latent_attention()), aiter_mega_moe())
    found = survey_model(decoder, config(model=EIGHT_EXPERTS))
    assert [layer.layer for layer in found.uncovered] == [1]


def test_experts_inside_attention_are_found() -> None:
    attention = latent_attention()
    attention.values = MixtureOfValues()
    found = survey_model(in_layers(attention), config(model=EIGHT_EXPERTS))
    assert [layer.reason.partition(" ")[0] for layer in found.uncovered] == ["MixtureOfValues"]
