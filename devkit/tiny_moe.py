"""Makes a tiny random Qwen3-MoE checkpoint whose expert load is skewed, differently in each layer.

Real enough for vLLM to serve as it serves the large ones, small enough (8 MB) to load at once on a CPU:

- layer 0 is dense, so that MoE layers' ids in the model differ from their ordinals, as in many real models;
- random routers load all experts alike, and Qwen3's have no bias. So all embeddings share a direction, which
  the residual stream carries through the layers, and each router's rows lean along it by an amount that falls
  from the layer's hottest expert to its coldest: in effect a bias for each expert;
- weights are float32 and the output head knows printable characters only: greedy texts are readable, have
  exactly as many tokens as asked for, and don't hang on rounding;
- the same seed makes the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT: Final = "<|endoftext|>"
PRINTABLE: Final = range(32, 127)

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The model's sizes; ``lean`` is how far router logits fall from the hottest expert to the coldest."""

    hidden: int = 128
    layers: int = 5
    dense_layers: tuple[int, ...] = (0,)
    experts: int = 16
    top_k: int = 4
    expert_width: int = 64
    dense_width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    max_tokens: int = 2048
    lean: float = 3.0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Ids of the MoE layers."""
        return tuple(layer for layer in range(self.layers) if layer not in self.dense_layers)

    def hottest_expert(self, layer: int) -> int:
        """The expert that the layer's router leans to most; the load falls with the distance after it."""
        return layer * 5 % self.experts


def make_checkpoint(folder: Path, shape: Shape | None = None, seed: int = 0) -> Path:
    """Write config, weights and tokenizer into ``folder``, which is created; returns it."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = byte_vocabulary()
    save_file(dict(weights(shape, vocabulary, seed)), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(shape))
    # Last: its presence says that the checkpoint is complete.
    _write_json(folder / "config.json", model_config(shape, vocabulary))
    return folder


def ensure_checkpoint(folder: Path) -> Path:
    """The checkpoint in ``folder``, made if it is absent or of another shape."""
    config = folder / "config.json"
    wanted = model_config(Shape(), byte_vocabulary())
    if not config.is_file() or json.loads(config.read_text()) != wanted:
        make_checkpoint(folder)
    return folder


def byte_vocabulary() -> dict[str, int]:
    """Token to id: the 256 bytes in order, spelt as byte-level BPE spells them, then end of text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + ordinal) for ordinal, byte in enumerate(others)}
    return {characters[byte]: byte for byte in range(256)} | {END_OF_TEXT: 256}


def tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """One token a byte: no text is unknown, and a prompt's token count is its length in bytes."""
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END_OF_TEXT])
    return made


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """What ``tokenizer_config.json`` holds."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": shape.max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def model_config(shape: Shape, vocabulary: dict[str, int]) -> dict[str, Any]:
    """What ``config.json`` holds."""
    end = vocabulary[END_OF_TEXT]
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "float32",
        "vocab_size": len(vocabulary),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "mlp_only_layers": list(shape.dense_layers),
        "decoder_sparse_step": 1,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": shape.expert_width,
        "intermediate_size": shape.dense_width,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": shape.max_tokens,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def weights(shape: Shape, vocabulary: dict[str, int], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the checkpoint, under the names that Qwen3-MoE checkpoints use."""
    random = _Random(seed)
    common = torch.ones(shape.hidden) / shape.hidden**0.5  # a unit vector
    ordinary = random.normal(len(vocabulary), shape.hidden)
    # Half of an embedding's power is common to all tokens.
    yield "model.embed_tokens.weight", ordinary + shape.hidden**0.5 * common
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield from _attention(f"{prefix}.self_attn", shape, random)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", torch.ones(shape.hidden)
        if layer in shape.dense_layers:
            yield from _mlp(f"{prefix}.mlp", shape.hidden, shape.dense_width, random)
            continue
        yield f"{prefix}.mlp.gate.weight", _router(shape, layer, common, random)
        for expert in range(shape.experts):
            yield from _mlp(f"{prefix}.mlp.experts.{expert}", shape.hidden, shape.expert_width, random)
    yield "model.norm.weight", torch.ones(shape.hidden)
    yield "lm_head.weight", _head(shape, vocabulary, common, random)


class _Random:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *sizes: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*sizes, generator=self._generator) * scale

    def linear(self, outputs: int, inputs: int, gain: float = 1.0) -> torch.Tensor:
        """Scaled so that inputs of variance 1 make outputs of variance ``gain``²."""
        return self.normal(outputs, inputs, scale=gain / inputs**0.5)


def _router(shape: Shape, layer: int, common: torch.Tensor, random: _Random) -> torch.Tensor:
    # The normalised state is about sqrt(hidden / 2) long along `common`, and as long across it.
    length = (shape.hidden / 2) ** 0.5
    place = (torch.arange(shape.experts) - shape.hottest_expert(layer)) % shape.experts
    lean = -shape.lean * place / (shape.experts - 1) / length
    return _across(random.linear(shape.experts, shape.hidden), common).add(torch.outer(lean, common))


def _attention(prefix: str, shape: Shape, random: _Random) -> Iterator[tuple[str, torch.Tensor]]:
    for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        yield f"{prefix}.{name}_proj.weight", random.linear(heads * shape.head_dim, shape.hidden)
    yield f"{prefix}.o_proj.weight", random.linear(shape.hidden, shape.heads * shape.head_dim, gain=0.5)
    for name in ("q", "k"):
        yield f"{prefix}.{name}_norm.weight", torch.ones(shape.head_dim)


def _mlp(prefix: str, hidden: int, width: int, random: _Random) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{prefix}.gate_proj.weight", random.linear(width, hidden)
    yield f"{prefix}.up_proj.weight", random.linear(width, hidden)
    yield f"{prefix}.down_proj.weight", random.linear(hidden, width, gain=0.5)


def _head(shape: Shape, vocabulary: dict[str, int], common: torch.Tensor, random: _Random) -> torch.Tensor:
    """Random rows across the common direction for printable bytes; zeros, so never the best, for the rest."""
    head = torch.zeros(len(vocabulary), shape.hidden)
    head[list(PRINTABLE)] = _across(random.linear(len(PRINTABLE), shape.hidden, gain=3.0), common)
    return head


def _across(rows: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The rows without their part along a unit vector."""
    result: torch.Tensor = rows - torch.outer(rows @ direction, direction)
    return result


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """``python -m devkit.tiny_moe FOLDER``."""
    parser = argparse.ArgumentParser(
        description="Make a tiny random Qwen3-MoE checkpoint with skewed routers."
    )
    parser.add_argument("folder", type=Path, help="where to write it; created if absent")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    arguments = parser.parse_args()
    make_checkpoint(arguments.folder, seed=arguments.seed)
    print(f"wrote {arguments.folder}")


if __name__ == "__main__":
    main()
