"""Which layers a config makes MoE layers: the public configs of the main families, and what is left open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from moescope.capture.seam.config_layers import count_experts, moe_layers, read_config

NEMOTRON_NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def public(kind: str, layers: int, **fields: Any) -> Any:
    """A text config with the fields that its config.json has, made by transformers where it knows them."""
    fields = {"num_hidden_layers": layers, **fields}
    if kind in CONFIG_MAPPING:
        return AutoConfig.for_model(kind, **fields)
    return SimpleNamespace(model_type=kind, **fields)


PUBLIC = [
    (
        "DeepSeek-V3",
        public("deepseek_v3", 61, n_routed_experts=256, first_k_dense_replace=3),
        256,
        range(3, 61),
    ),
    (
        "DeepSeek-V2-Lite",
        public("deepseek_v2", 27, n_routed_experts=64, first_k_dense_replace=1, moe_layer_freq=1),
        64,
        range(1, 27),
    ),
    ("DeepSeek-V4", public("deepseek_v4", 6, n_routed_experts=256, num_hash_layers=3), 256, range(6)),
    ("Kimi-K2", public("kimi_k2", 61, n_routed_experts=384, first_k_dense_replace=1), 384, range(1, 61)),
    ("Kimi-Linear", public("kimi_linear", 27, num_experts=256, first_k_dense_replace=1), 256, range(1, 27)),
    (
        "Qwen3-30B-A3B",
        public("qwen3_moe", 48, num_experts=128, decoder_sparse_step=1, mlp_only_layers=[]),
        128,
        range(48),
    ),
    (
        "Qwen2-57B-A14B",
        public("qwen2_moe", 28, num_experts=64, decoder_sparse_step=1, mlp_only_layers=[]),
        64,
        range(28),
    ),
    ("Qwen3-Next-80B", public("qwen3_next", 48, num_experts=512, decoder_sparse_step=1), 512, range(48)),
    ("Qwen3.5-MoE", public("qwen3_5_moe_text", 40, num_experts=256), 256, range(40)),
    ("Mixtral-8x7B", public("mixtral", 32, num_local_experts=8), 8, range(32)),
    ("gpt-oss-120b", public("gpt_oss", 36, num_local_experts=128), 128, range(36)),
    ("GLM-4.5", public("glm4_moe", 92, n_routed_experts=160, first_k_dense_replace=3), 160, range(3, 92)),
    ("GLM-4.5-Air", public("glm4_moe", 46, n_routed_experts=128, first_k_dense_replace=1), 128, range(1, 46)),
    ("MiniMax-M2", public("minimax_m2", 62, num_local_experts=256), 256, range(62)),
    (
        "Llama-4-Maverick",
        public("llama4_text", 48, num_local_experts=128, interleave_moe_layer_step=2),
        128,
        range(1, 48, 2),
    ),
    (
        "Llama-4-Scout",
        public("llama4_text", 48, num_local_experts=16, interleave_moe_layer_step=1),
        16,
        range(48),
    ),
    (
        "Ernie-4.5-21B-A3B",
        public(
            "ernie4_5_moe",
            28,
            moe_num_experts=64,
            moe_layer_start_index=1,
            moe_layer_end_index=27,
            moe_layer_interval=1,
        ),
        64,
        range(1, 28),
    ),
    (
        "Jamba-1.5-Mini",
        public("jamba", 32, num_experts=16, expert_layer_period=2, expert_layer_offset=1),
        16,
        range(1, 32, 2),
    ),
    (
        "Nemotron-3-Nano",
        SimpleNamespace(
            model_type="nemotron_h",
            num_hidden_layers=52,
            n_routed_experts=128,
            hybrid_override_pattern=NEMOTRON_NANO,
        ),
        128,
        [i for i, letter in enumerate(NEMOTRON_NANO) if letter == "E"],
    ),
    ("dots1", public("dots1", 62, n_routed_experts=128, first_k_dense_replace=1), 128, range(1, 62)),
    ("Hunyuan-A13B", public("hunyuan_v1_moe", 32, num_experts=64), 64, range(32)),
    ("OLMoE", public("olmoe", 16, num_experts=64), 64, range(16)),
    ("Phi-3.5-MoE", public("phimoe", 32, num_local_experts=16), 16, range(32)),
    ("Granite-3.1-3B-A800M", public("granitemoe", 32, num_local_experts=40), 40, range(32)),
    ("Granite-4.0-H", public("granitemoehybrid", 40, num_local_experts=72), 72, range(40)),
    (
        "DBRX",
        SimpleNamespace(model_type="dbrx", n_layers=40, ffn_config={"moe_num_experts": 16, "moe_top_k": 4}),
        16,
        range(40),
    ),
    ("Ling-mini-2.0", public("bailing_moe", 20, num_experts=256, first_k_dense_replace=1), 256, range(1, 20)),
    ("Trinity-Mini", public("afmoe", 32, num_experts=128, num_dense_layers=2), 128, range(2, 32)),
    ("LongCat-Flash", public("longcat_flash", 28, n_routed_experts=512), 512, range(28)),
    (
        "Step3",
        public("step3_text", 61, moe_num_experts=48, moe_layers_enum=",".join(map(str, range(4, 60)))),
        48,
        range(4, 60),
    ),
    (
        "MiMo-V2-Flash",
        public("mimo_v2_flash", 48, n_routed_experts=256, moe_layer_freq=[0] + [1] * 47),
        256,
        range(1, 48),
    ),
    ("LFM2-8B-A1B", public("lfm2_moe", 24, num_experts=32, num_dense_layers=2), 32, range(2, 24)),
]


@pytest.mark.parametrize(
    ("config", "experts", "layers"), [case[1:] for case in PUBLIC], ids=[c[0] for c in PUBLIC]
)
def test_the_public_configs_of_the_main_families(config: Any, experts: int, layers: Any) -> None:
    depth = getattr(config, "num_hidden_layers", None) or config.n_layers
    if config.model_type == "longcat_flash":
        depth = 28  # vLLM counts decoder layers; the config's own number counts attention twice
    found, rule = moe_layers(config, depth)
    assert count_experts(config) == experts
    assert found == frozenset(layers)
    assert rule


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        (public("llama", 4), 0),
        (public("qwen3", 4), 0),
        (public("qwen3_moe", 4, num_experts=0), 0),
        (public("gemma4_text", 4), 0),
        (public("granitemoehybrid", 4, num_local_experts=0), 0),
        # Neither shared experts nor experts of a token are experts to choose among.
        (SimpleNamespace(n_shared_experts=2, num_experts_per_tok=8, num_shared_experts=4, n_group=8), 0),
    ],
)
def test_dense_models_have_no_experts(config: Any, experts: int) -> None:
    assert count_experts(config) == experts


def of(text: Any, depth: int | None = None) -> Any:
    """What is read from vLLM's configuration with this text config."""
    model_config = SimpleNamespace(
        hf_text_config=text, get_total_num_hidden_layers=lambda: depth or text.num_hidden_layers
    )
    return read_config(SimpleNamespace(model_config=model_config))


def test_a_config_that_only_has_experts_leaves_the_layers_open() -> None:
    found = of(SimpleNamespace(model_type="never_seen", num_hidden_layers=4, num_experts=8))
    assert (found.experts, found.layers, found.depth) == (8, None, 4)


def test_readings_that_differ_say_only_what_all_of_them_name() -> None:
    text = SimpleNamespace(
        model_type="never_seen",
        num_hidden_layers=6,
        num_experts=8,
        first_k_dense_replace=1,
        mlp_layer_types=["dense", "dense", "sparse", "sparse", "sparse", "sparse"],
    )
    assert of(text).layers == frozenset(range(2, 6))


@pytest.mark.parametrize(
    "fields",
    [
        {"moe_layers_enum": "a,b"},
        {"decoder_sparse_step": "two"},
        {"expert_layer_period": 0, "expert_layer_offset": 0},
        {"mlp_layer_types": ["sparse"]},
        {"first_k_dense_replace": None},
    ],
)
def test_an_attribute_that_means_something_else_says_nothing(fields: dict[str, Any]) -> None:
    assert of(SimpleNamespace(num_hidden_layers=4, num_experts=8, **fields)).layers is None


def test_sarvams_frequency_counts_from_the_first_moe_layer_and_deepseeks_from_zero() -> None:
    fields = {"num_hidden_layers": 6, "num_experts": 8, "first_k_dense_replace": 1, "moe_layer_freq": 2}
    assert of(SimpleNamespace(model_type="sarvam_mla", **fields)).layers == {1, 3, 5}
    assert of(SimpleNamespace(model_type="deepseek_v3", **fields)).layers == {2, 4}


def test_layers_with_experts_of_their_own_number_count_the_most() -> None:
    blocks = [{"block_type": "attention"}, {"block_type": "moe", "n_routed_experts": 32}]
    assert count_experts(SimpleNamespace(block_configs=blocks)) == 32
    assert count_experts(SimpleNamespace(moe_num_experts=[64, 64])) == 64  # Ernie-VL: for text and for vision


def test_a_configuration_without_a_model_has_no_experts() -> None:
    assert read_config(SimpleNamespace()).experts == 0
