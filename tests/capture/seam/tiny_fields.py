"""What the configs of tiny models share: the fields of any config.json, with small sizes and four layers."""

from __future__ import annotations

from typing import Any, Final

SIZES: Final = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLA: Final = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
}
SMALL: Final = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
FULL: Final = ["full_attention"] * 4


def model(architecture: str, kind: str, **fields: Any) -> dict[str, Any]:
    """A config.json."""
    return {**SIZES, "architectures": [architecture], "model_type": kind, **fields}
