"""Tiny models of other kinds, and without experts."""

from __future__ import annotations

from typing import Any, Final

from tests.capture.seam.tiny_fields import FULL, model

MAMBA: Final = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 64,
}

MIXTRAL_LIKE: Final[dict[str, dict[str, Any]]] = {
    "Mixtral": model("MixtralForCausalLM", "mixtral", num_local_experts=8, num_experts_per_tok=2),
    "gpt-oss": model("GptOssForCausalLM", "gpt_oss", num_local_experts=8, num_experts_per_tok=2),
    "MiniMax-M2": model(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        num_local_experts=8,
        num_experts_per_tok=2,
        scoring_func="sigmoid",
        use_routing_bias=True,
        rotary_dim=16,
    ),
    "Llama 4": model(
        "Llama4ForCausalLM",
        "llama4_text",
        num_local_experts=8,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        intermediate_size_mlp=256,
    ),
    "Granite": model("GraniteMoeForCausalLM", "granitemoe", num_local_experts=8, num_experts_per_tok=2),
    "Granite, shared": model(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
    ),
    "Granite, hybrid": model(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention", "mamba", "attention"],
        position_embedding_type="nope",
        **MAMBA,
    ),
    "Phi-3.5-MoE": model("PhiMoEForCausalLM", "phimoe", num_local_experts=8, num_experts_per_tok=2),
    "JetMoE": model("JetMoeForCausalLM", "jetmoe", num_local_experts=8, num_experts_per_tok=2),
}
"""`num_local_experts` says how many experts there are."""

OF_THEIR_OWN: Final[dict[str, dict[str, Any]]] = {
    "Ernie 4.5": model(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        moe_num_experts=8,
        moe_k=2,
        moe_intermediate_size=64,
        moe_layer_start_index=1,
        moe_layer_end_index=3,
        moe_layer_interval=1,
        moe_num_shared_experts=1,
    ),
    "DBRX": {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": 128,
        "n_heads": 4,
        "n_layers": 4,
        "max_seq_len": 256,
        "vocab_size": 512,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 8, "moe_top_k": 2},
        "torch_dtype": "bfloat16",
    },
    "Step3": model(
        "Step3TextForCausalLM",
        "step3_text",
        moe_num_experts=8,
        moe_top_k=2,
        moe_intermediate_size=64,
        moe_layers_enum="2,3",
        share_expert_dim=64,
        share_q_dim=64,
        num_attention_groups=1,
    ),
    "Step-3.5": model(
        "Step3p5ForCausalLM",
        "step3p5",
        moe_num_experts=8,
        moe_top_k=2,
        moe_intermediate_size=64,
        moe_layers_enum="2,3",
        share_expert_dim=64,
        num_attention_groups=2,
        use_moe_router_bias=True,
        need_fp32_gate=True,
        layer_types=FULL,
    ),
}
"""`moe_num_experts` says it, in DBRX within `ffn_config`."""

DENSE: Final[dict[str, dict[str, Any]]] = {
    "Qwen3, dense": model("Qwen3ForCausalLM", "qwen3"),
    "Llama": model("LlamaForCausalLM", "llama"),
    "Nemotron-H without experts": model(
        "NemotronHForCausalLM",
        "nemotron_h",
        hybrid_override_pattern="M-*-",
        mamba_num_heads=8,
        mamba_head_dim=32,
        n_groups=1,
        ssm_state_size=16,
        conv_kernel=4,
        chunk_size=64,
    ),
    "Gemma 4, dense": model(
        "Gemma4ForCausalLM", "gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0
    ),
}
