"""Configs of MoE models for runs on a GPU with dummy weights: the shapes of real ones, and small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_COMMON: Final[dict[str, Any]] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def qwen3_moe(
    layers: int = 48,
    hidden: int = 2048,
    experts: int = 128,
    top_k: int = 8,
    expert_width: int = 768,
    heads: int = 32,
    kv_heads: int = 4,
    vocabulary: int = 151936,
) -> dict[str, Any]:
    """Qwen3-30B-A3B's shape; the arguments make it smaller."""
    return {
        **_COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "moe_intermediate_size": expert_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
    }


def deepseek_v2(
    layers: int = 27,
    hidden: int = 2048,
    experts: int = 64,
    top_k: int = 6,
    expert_width: int = 1408,
    vocabulary: int = 102400,
) -> dict[str, Any]:
    """DeepSeek-V2-Lite's shape with V2's grouped top-k; its first layer is dense."""
    return {
        **_COMMON,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "moe_intermediate_size": expert_width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_shared_experts": 2,
        "n_routed_experts": experts,
        "num_experts_per_tok": top_k,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 8,
        "topk_group": 3,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
    }


def deepseek_v3(
    layers: int = 4, hidden: int = 512, experts: int = 64, vocabulary: int = 8192
) -> dict[str, Any]:
    """A small DeepSeek-V3: a dense first layer, and a layer behind the others that drafts (MTP)."""
    return deepseek_v2(layers, hidden, experts, expert_width=128, vocabulary=vocabulary) | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "topk_group": 4,
        "num_nextn_predict_layers": 1,
    }


def llama(layers: int = 1, hidden: int = 512, vocabulary: int = 8192) -> dict[str, Any]:
    """A small dense Llama, such as EAGLE drafts with."""
    return {
        **_COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
    }


def gpt_oss(
    layers: int = 24, hidden: int = 2880, experts: int = 32, top_k: int = 4, vocabulary: int = 201088
) -> dict[str, Any]:
    """The shape of gpt-oss-20b, whose experts are quantised to MXFP4."""
    unquantized = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return {
        **_COMMON,
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
        "sliding_window": 128,
        "layer_types": [("full_attention", "sliding_attention")[layer % 2 == 0] for layer in range(layers)],
        "swiglu_limit": 7.0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000,
        "max_position_embeddings": 131072,
        "attention_bias": True,
        "pad_token_id": 0,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": unquantized},
    }


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder that vLLM loads with `load_format="dummy"` and `skip_tokenizer_init=True`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder
