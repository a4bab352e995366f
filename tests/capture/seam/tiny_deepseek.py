"""Tiny models of DeepSeek's kind: `n_routed_experts` says how many experts there are."""

from __future__ import annotations

from typing import Any, Final

from tests.capture.seam.tiny_fields import FULL, MLA, SMALL, model

DEEPSEEK: Final = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    **SMALL,
    **MLA,
}

DEEPSEEK_LIKE: Final[dict[str, dict[str, Any]]] = {
    "DeepSeek-V2": model(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        **{**DEEPSEEK, "topk_method": "greedy", "scoring_func": "softmax"},
        first_k_dense_replace=1,
        moe_layer_freq=1,
    ),
    "DeepSeek-V3": model("DeepseekV3ForCausalLM", "deepseek_v3", **DEEPSEEK, first_k_dense_replace=2),
    "DeepSeek-V3, every second": model(
        "DeepseekV3ForCausalLM", "deepseek_v3", **DEEPSEEK, first_k_dense_replace=1, moe_layer_freq=2
    ),
    "Kimi-K2": model("DeepseekV3ForCausalLM", "kimi_k2", **DEEPSEEK, first_k_dense_replace=1),
    "GLM-4.5": model(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        n_routed_experts=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        **SMALL,
    ),
    "GLM-4.7-Flash": model(
        "Glm4MoeLiteForCausalLM",
        "glm4_moe_lite",
        **DEEPSEEK,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        first_k_dense_replace=1,
    ),
    "dots1": model(
        "Dots1ForCausalLM",
        "dots1",
        n_routed_experts=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        layer_types=FULL,
        **SMALL,
    ),
    "LongCat": model(
        "LongcatFlashForCausalLM",
        "longcat_flash",
        **MLA,
        num_layers=2,
        n_routed_experts=8,
        moe_topk=2,
        zero_expert_num=2,
        zero_expert_type="identity",
        expert_ffn_hidden_size=64,
        mla_scale_q_lora=True,
        mla_scale_kv_lora=True,
        ffn_hidden_size=256,
    ),
    "MiMo-V2": model(
        "MiMoV2FlashForCausalLM",
        "mimo_v2_flash",
        n_routed_experts=8,
        moe_layer_freq=[0, 1, 0, 1],
        hybrid_layer_pattern=[0, 1, 0, 1],
        layernorm_epsilon=1e-5,
        n_group=1,
        topk_group=1,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=32,
        sliding_window_size=64,
        attention_bias=False,
        v_head_dim=32,
        **SMALL,
    ),
    "Hy-V4": model("HYV4ForCausalLM", "hy_v4", n_routed_experts=8),
    "A.X-K1": model("AXK1ForCausalLM", "axk1", **DEEPSEEK, first_k_dense_replace=1),
    "Solar-Open": model(
        "SolarOpenForCausalLM",
        "solar_open",
        n_routed_experts=8,
        n_shared_experts=1,
        first_k_dense_replace=0,
        **SMALL,
    ),
    "openPangu": model(
        "PanguUltraMoEForCausalLM",
        "pangu_ultra_moe",
        **DEEPSEEK,
        first_k_dense_replace=1,
        tie_word_embeddings=False,
    ),
}
