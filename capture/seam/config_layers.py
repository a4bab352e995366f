"""Which decoder layers a model's config makes MoE layers.

Each family of models says it in attributes of its own, and vLLM's model classes read them. An attribute is
one reading of the config: the layers that it makes MoE. Where a config has several, only the layers that all
readings name are taken. What no attribute says is left open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

_EXPERTS: Final = re.compile(r"(moe_)?(n|num)_(routed_|local_|logical_)?experts")
_NESTED: Final = ("ffn_config", "moe", "moe_config")  # Dbrx's and Moondream3's, as one finds them
_EVERY_LAYER: Final = frozenset(
    (
        *("aria_text", "dbrx", "deepseek_v4", "deepseek_v41", "flex_olmo", "gpt_oss", "granitemoe"),
        *("granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "longcat_flash"),
        *("minicpm", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen3_5_moe", "qwen3_5_moe_text"),
    )
)
"""Model types of which every decoder layer is an MoE layer, and whose configs say no more."""


@dataclass(frozen=True, slots=True)
class ConfiguredExperts:
    """What a model's config says of its experts.

    Attributes:
        experts: how many a layer has; 0: none, or the config doesn't say.
        layers: the decoder layers that are MoE layers; None: the config doesn't say which.
        depth: the number of decoder layers.
        rule: the attributes that say so, such as ``first_k_dense_replace=3``.
    """

    experts: int
    layers: frozenset[int] | None
    depth: int
    rule: str = ""


def read_config(vllm_config: Any) -> ConfiguredExperts:
    """What the target model's config says of its experts. Draft and MTP layers are not among its layers."""
    model_config: Any = getattr(vllm_config, "model_config", None)
    text = getattr(model_config, "hf_text_config", None)
    if text is None:
        return ConfiguredExperts(0, None, 0)
    depth = int(model_config.get_total_num_hidden_layers())
    experts = count_experts(text)
    if experts < 2 or depth < 1:
        return ConfiguredExperts(0, None, depth)
    layers, rule = moe_layers(text, depth)
    return ConfiguredExperts(experts, layers, depth, rule)


def count_experts(text: Any) -> int:
    """The experts of an MoE layer by the text config: the most that any layer has; 0: none."""
    found = [0]
    for holder in (text, *(_value(text, name) for name in _NESTED)):
        if holder is None:
            continue
        for name, value in _attributes(holder):
            if _EXPERTS.fullmatch(name):
                found.extend(number for number in _numbers(value) if number > 0)
    for block in _value(text, "block_configs") or ():
        found.extend(_numbers(_value(block, "n_routed_experts")))
    return max(found)


def moe_layers(text: Any, depth: int) -> tuple[frozenset[int] | None, str]:
    """The decoder layers of `depth` that the text config makes MoE, and by which attributes; None: unsaid."""
    said: list[frozenset[int]] = []
    rules: list[str] = []
    for reading in _READINGS:
        try:
            found = reading(_Config(text, depth))
            if found is None:
                continue
            chosen = frozenset(layer for layer in found[0] if 0 <= layer < depth)
        except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError):
            continue  # an attribute of this name that means something else
        said.append(chosen)
        rules.append(found[1])
    if said:
        return frozenset.intersection(*said), ", ".join(rules)
    kind = _value(text, "model_type")
    if kind in _EVERY_LAYER:
        return frozenset(range(depth)), f"model_type={kind}"
    return None, ""


class _Config(NamedTuple):
    """A text config and its number of decoder layers."""

    text: Any
    depth: int

    def get(self, name: str, default: Any = None) -> Any:
        return _value(self.text, name, default)


_Read = tuple[Iterator[int], str] | None


def _layer_kinds(config: _Config) -> _Read:
    """Cohere2-MoE, Exaone-MoE, Laguna, GLM-5, Hy-V4, Muse Spark, DeepSeek-V4: each layer's kind of MLP."""
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, (list, tuple)) or len(kinds) < config.depth:
        return None
    return (i for i, kind in enumerate(kinds) if kind != "dense"), "mlp_layer_types"


def _hybrid_pattern(config: _Config) -> _Read:
    """Nemotron-H: a letter for each layer, E for MoE."""
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or len(pattern) < config.depth:
        return None
    return (i for i, letter in enumerate(pattern) if letter == "E"), "hybrid_override_pattern"


def _block_kinds(config: _Config) -> _Read:
    """Nemotron-H of newer transformers: a word for each layer. Jamba's words never are ``moe``."""
    kinds = config.get("layers_block_type")
    if not isinstance(kinds, (list, tuple)) or "moe" not in kinds:
        return None
    return (i for i, kind in enumerate(kinds) if kind == "moe"), "layers_block_type"


def _expert_period(config: _Config) -> _Read:
    """Jamba."""
    period, offset = config.get("expert_layer_period"), config.get("expert_layer_offset")
    if not isinstance(period, int) or not isinstance(offset, int):
        return None
    rule = f"expert_layer_period={period}, expert_layer_offset={offset}"
    return (i for i in range(config.depth) if i % period == offset), rule


def _named_layers(config: _Config) -> _Read:
    """Step3, Step-3.5, Step5: the layers' numbers, as text or as a list."""
    for name in ("moe_layers_enum", "moe_layer_list"):
        value = config.get(name)
        if isinstance(value, str) and value.strip():
            return (int(part) for part in value.strip().split(",")), name
        if isinstance(value, (list, tuple)):
            return iter(_numbers(value)), name
    return None


def _interleaved(config: _Config) -> _Read:
    """Llama 4."""
    step = config.get("interleave_moe_layer_step")
    if not isinstance(step, int):
        return None
    return (
        i for i in range(config.depth) if step > 0 and (i + 1) % step == 0
    ), f"interleave_moe_layer_step={step}"


def _start_and_end(config: _Config) -> _Read:
    """Ernie 4.5; its vision-language models have an index for text and one for vision."""
    starts, ends = (
        _numbers(config.get("moe_layer_start_index")),
        _numbers(config.get("moe_layer_end_index")),
    )
    if not starts:
        return None
    if not config.get("use_moe", True):
        return iter(()), "use_moe=False"
    step = config.get("moe_layer_interval", 1)
    first, last = min(starts), max(ends, default=config.depth - 1)
    last = config.depth - 1 if last < 0 else last
    rule = f"moe_layer_start_index={first}, moe_layer_end_index={last}, moe_layer_interval={step}"
    return (i for i in range(first, last + 1) if (i + 1) % step == 0), rule


def _sparse_step(config: _Config) -> _Read:
    """Qwen2-MoE, Qwen3-MoE, Qwen3-Next, Intern-S1-Pro."""
    step, dense = config.get("decoder_sparse_step"), config.get("mlp_only_layers")
    if not isinstance(step, int) and not dense:
        return None
    step, dense = step or 1, set(_numbers(dense))
    rule = f"decoder_sparse_step={step}, mlp_only_layers={sorted(dense)}"
    return (i for i in range(config.depth) if i not in dense and (i + 1) % step == 0), rule


def _frequency(config: _Config) -> _Read:
    """A list marks each layer (MiMo-V2, MiniMax-M3); a number counts from layer 0 (DeepSeek), or from the
    first MoE layer (Sarvam)."""
    value = config.get("moe_layer_freq")
    if isinstance(value, (list, tuple)) and len(value) >= config.depth:
        return (i for i in range(config.depth) if value[i]), "moe_layer_freq"
    if not isinstance(value, int) or value < 2:
        return None
    sarvam = str(config.get("model_type", "")).startswith("sarvam")
    first = config.get("first_k_dense_replace", 1) if sarvam else 0
    return (i for i in range(first, config.depth) if (i - first) % value == 0), f"moe_layer_freq={value}"


def _first_dense(config: _Config) -> _Read:
    """DeepSeek, GLM-4.5, Kimi, Bailing, dots1, Hy-V3; AFMoE and LFM2-MoE; Inkling; Moondream3."""
    for name in ("first_k_dense_replace", "num_dense_layers", "dense_mlp_idx", "moe_start_layer"):
        value = config.get(name)
        if isinstance(value, int) and value >= 0:
            return iter(range(value, config.depth)), f"{name}={value}"
    return None


def _every_nth(config: _Config) -> _Read:
    """Nomic's BERT."""
    step = config.get("moe_every_n_layers")
    if not isinstance(step, int):
        return None
    return (i for i in range(config.depth) if step > 0 and i % step == 1), f"moe_every_n_layers={step}"


def _moe_block(config: _Config) -> _Read:
    """Gemma 4."""
    enabled = config.get("enable_moe_block")
    if not isinstance(enabled, bool):
        return None
    return iter(range(config.depth) if enabled else ()), f"enable_moe_block={enabled}"


_READINGS: Final[tuple[Callable[[_Config], _Read], ...]] = (
    _layer_kinds,
    _hybrid_pattern,
    _block_kinds,
    _expert_period,
    _named_layers,
    _interleaved,
    _start_and_end,
    _sparse_step,
    _frequency,
    _first_dense,
    _every_nth,
    _moe_block,
)


def _value(holder: Any, name: str, default: Any = None) -> Any:
    if isinstance(holder, dict):
        return holder.get(name, default)
    try:
        return getattr(holder, name, default)
    except Exception:  # noqa: BLE001 - a config's property may fail
        return default


def _attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    """Names and values; names that an ``attribute_map`` gives another attribute count as well."""
    held = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
    yield from list(held.items())
    for name in getattr(type(holder), "attribute_map", {}):
        yield name, _value(holder, name)


def _numbers(value: Any) -> list[int]:
    items = value if isinstance(value, (list, tuple, set)) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
