"""vLLM's own model classes, instantiated without memory (on the meta device) from tiny configs.

Each entry has the fields that the family's config.json has, with small sizes and four layers. What is left
out takes the default of the config's class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from transformers import CONFIG_MAPPING
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from vllm.transformers_utils.config import _CONFIG_REGISTRY

_SIZES: Final = {
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
_MLA: Final = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
}
_SMALL: Final = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
_DEEPSEEK: Final = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    **_SMALL,
    **_MLA,
}
_QWEN: Final = {
    "num_experts": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0],
    "norm_topk_prob": True,
    "shared_expert_intermediate_size": 64,
    **_SMALL,
}
_NEXT: Final = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
}
_MAMBA: Final = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 64,
}
_FULL: Final = ["full_attention"] * 4


def _model(architecture: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {**_SIZES, "architectures": [architecture], "model_type": kind, **fields}


MODELS: Final[dict[str, dict[str, Any]]] = {
    "Qwen2-MoE": _model("Qwen2MoeForCausalLM", "qwen2_moe", **_QWEN),
    "Qwen3-MoE": _model("Qwen3MoeForCausalLM", "qwen3_moe", **_QWEN),
    "Qwen3-MoE, every second": _model(
        "Qwen3MoeForCausalLM", "qwen3_moe", **{**_QWEN, "decoder_sparse_step": 2, "mlp_only_layers": []}
    ),
    "Qwen3-Next": _model("Qwen3NextForCausalLM", "qwen3_next", **{**_QWEN, "mlp_only_layers": []}, **_NEXT),
    "Qwen3, dense": _model("Qwen3ForCausalLM", "qwen3"),
    "Llama": _model("LlamaForCausalLM", "llama"),
    "Mixtral": _model("MixtralForCausalLM", "mixtral", num_local_experts=8, num_experts_per_tok=2),
    "DeepSeek-V2": _model(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        **{**_DEEPSEEK, "topk_method": "greedy", "scoring_func": "softmax"},
        first_k_dense_replace=1,
        moe_layer_freq=1,
    ),
    "DeepSeek-V3": _model("DeepseekV3ForCausalLM", "deepseek_v3", **_DEEPSEEK, first_k_dense_replace=2),
    "DeepSeek-V3, every second": _model(
        "DeepseekV3ForCausalLM", "deepseek_v3", **_DEEPSEEK, first_k_dense_replace=1, moe_layer_freq=2
    ),
    "Kimi-K2": _model("DeepseekV3ForCausalLM", "kimi_k2", **_DEEPSEEK, first_k_dense_replace=1),
    "gpt-oss": _model("GptOssForCausalLM", "gpt_oss", num_local_experts=8, num_experts_per_tok=2),
    "GLM-4.5": _model(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        n_routed_experts=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        **_SMALL,
    ),
    "GLM-4.7-Flash": _model(
        "Glm4MoeLiteForCausalLM",
        "glm4_moe_lite",
        **_DEEPSEEK,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        first_k_dense_replace=1,
    ),
    "MiniMax-M2": _model(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        num_local_experts=8,
        num_experts_per_tok=2,
        scoring_func="sigmoid",
        use_routing_bias=True,
        rotary_dim=16,
    ),
    "Llama 4": _model(
        "Llama4ForCausalLM",
        "llama4_text",
        num_local_experts=8,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        intermediate_size_mlp=256,
    ),
    "Ernie 4.5": _model(
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
    "Granite": _model("GraniteMoeForCausalLM", "granitemoe", num_local_experts=8, num_experts_per_tok=2),
    "Granite, shared": _model(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
    ),
    "Granite, hybrid": _model(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention", "mamba", "attention"],
        position_embedding_type="nope",
        **_MAMBA,
    ),
    "Jamba": _model(
        "JambaForCausalLM",
        "jamba",
        num_experts=8,
        num_experts_per_tok=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=4,
        attn_layer_offset=2,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=8,
    ),
    "Nemotron-H without experts": _model(
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
    "dots1": _model(
        "Dots1ForCausalLM",
        "dots1",
        n_routed_experts=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        layer_types=_FULL,
        **_SMALL,
    ),
    "Hunyuan": _model("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", num_experts=8, moe_topk=2),
    "OLMoE": _model("OlmoeForCausalLM", "olmoe", num_experts=8, num_experts_per_tok=2),
    "FlexOlmo": _model("FlexOlmoForCausalLM", "flex_olmo", num_experts=8, num_experts_per_tok=2),
    "Phi-3.5-MoE": _model("PhiMoEForCausalLM", "phimoe", num_local_experts=8, num_experts_per_tok=2),
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
    "AFMoE": _model(
        "AfmoeForCausalLM",
        "afmoe",
        num_experts=8,
        num_shared_experts=1,
        num_dense_layers=2,
        n_group=1,
        topk_group=1,
        score_func="sigmoid",
        route_norm=True,
        route_scale=1.0,
        layer_types=_FULL,
        **_SMALL,
    ),
    "LongCat": _model(
        "LongcatFlashForCausalLM",
        "longcat_flash",
        **_MLA,
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
    "Step3": _model(
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
    "Step-3.5": _model(
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
        layer_types=_FULL,
    ),
    "Exaone": _model(
        "ExaoneMoeForCausalLM",
        "exaone_moe",
        num_experts=8,
        num_shared_experts=1,
        first_k_dense_replace=1,
        sliding_window=64,
        layer_types=_FULL,
        **_SMALL,
    ),
    "MiMo-V2": _model(
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
        **_SMALL,
    ),
    "LFM2-MoE": _model(
        "Lfm2MoeForCausalLM",
        "lfm2_moe",
        num_experts=8,
        num_dense_layers=2,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        **_SMALL,
    ),
    "Hy-V3": _model(
        "HYV3ForCausalLM",
        "hy_v3",
        num_experts=8,
        num_shared_experts=1,
        first_k_dense_replace=1,
        expert_hidden_dim=64,
        route_norm=True,
        **_SMALL,
    ),
    "Hy-V4": _model("HYV4ForCausalLM", "hy_v4", n_routed_experts=8),
    "Laguna": _model(
        "LagunaForCausalLM",
        "laguna",
        num_experts=8,
        shared_expert_intermediate_size=64,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        **_SMALL,
    ),
    "Cohere2-MoE": _model(
        "Cohere2MoeForCausalLM", "cohere2_moe", num_experts=8, first_k_dense_replace=1, **_SMALL
    ),
    "Gemma 4": _model(
        "Gemma4ForCausalLM",
        "gemma4_text",
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=64,
        enable_moe_block=True,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    ),
    "Gemma 4, dense": _model(
        "Gemma4ForCausalLM", "gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0
    ),
    "A.X-K1": _model("AXK1ForCausalLM", "axk1", **_DEEPSEEK, first_k_dense_replace=1),
    "Solar-Open": _model(
        "SolarOpenForCausalLM",
        "solar_open",
        n_routed_experts=8,
        n_shared_experts=1,
        first_k_dense_replace=0,
        **_SMALL,
    ),
    "Ling": _model(
        "BailingMoeV2ForCausalLM",
        "bailing_moe",
        num_experts=8,
        num_shared_experts=1,
        first_k_dense_replace=1,
        rope_theta=1e4,
        use_bias=False,
        use_qkv_bias=False,
        norm_topk_prob=True,
        n_group=1,
        topk_group=1,
        score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        use_qk_norm=True,
        embedding_dropout=0.0,
        tie_word_embeddings=False,
        **_SMALL,
    ),
    "Sarvam": _model(
        "SarvamMLAForCausalLM",
        "sarvam_mla",
        **_MLA,
        num_experts=8,
        num_shared_experts=1,
        first_k_dense_replace=1,
        moe_shared_expert_intermediate_size=64,
        **_SMALL,
    ),
    "openPangu": _model(
        "PanguUltraMoEForCausalLM",
        "pangu_ultra_moe",
        **_DEEPSEEK,
        first_k_dense_replace=1,
        tie_word_embeddings=False,
    ),
    # These route without a MoERunner:
    "MiniCPM-MoE": _model(
        "MiniCPMForCausalLM",
        "minicpm",
        num_experts=8,
        num_experts_per_tok=2,
        scale_emb=1,
        dim_model_base=128,
        scale_depth=1.0,
        rope_theta=1e4,
        tie_word_embeddings=True,
    ),
    "JetMoE": _model("JetMoeForCausalLM", "jetmoe", num_local_experts=8, num_experts_per_tok=2),
}

_REMOTE: Final = """from transformers import PreTrainedConfig
class TinyConfig(PreTrainedConfig):
    model_type = {kind!r}
    def __init__(self, **fields):
        fields.setdefault("rope_parameters", dict(rope_type="default", rope_theta=1e4))
        super().__init__(**fields)
"""


@contextmanager
def one_rank(store: Path) -> Iterator[None]:
    """vLLM's groups with one rank, while models are made; `store` is a file that isn't there yet."""
    from vllm.config import VllmConfig

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1, 1)
        try:
            yield
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()


def build(config: dict[str, Any], folder: Path) -> tuple[torch.nn.Module, Any]:
    """The model that vLLM makes of this config.json, without memory, and vLLM's configuration.

    Args:
        config: see `MODELS`.
        folder: an empty one, for the config.
    """
    kind = config["model_type"]
    if kind not in CONFIG_MAPPING and kind not in _CONFIG_REGISTRY:
        (folder / "configuration_tiny.py").write_text(_REMOTE.format(kind=kind))
        config = {**config, "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder),
        tokenizer=str(folder),
        skip_tokenizer_init=True,
        trust_remote_code="auto_map" in config,
        dtype="bfloat16",
        enforce_eager=True,
        load_format="dummy",
        max_model_len=128,
        max_num_batched_tokens=128,
    )
    # vLLM looks at a model's class in a process of its own, which takes seconds.
    with mock.patch.object(registry, "_run_in_subprocess", lambda look: look()):
        vllm_config = arguments.create_engine_config()
        with set_current_vllm_config(vllm_config), torch.device("meta"):
            return initialize_model(vllm_config), vllm_config
