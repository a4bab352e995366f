"""Ways round the callback: layers whose router has one, and whose tokens take another way in some steps.

Each is found by what vLLM's module of the family holds (looked up in vLLM 0.32 and 0.33). Its reason names
what would have the layer counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import nn

from moescope.capture.seam.decoder import layer_of_path

_V41_MODEL: Final = "vllm.models.deepseek_v41.nvidia"
_EVERY: Final = range(1 << 20)

SLOWER_FRONT: Final = (
    "decode_backend=latency_specialized of DeepSeek-V4.1: its fused front, which routes, is not taken where "
    "a callback is set"
)


@dataclass(frozen=True, slots=True)
class Bypass:
    """Layers of which some steps can't be seen, and why."""

    layers: range | frozenset[int]
    reason: str


@dataclass(frozen=True, slots=True)
class Bypasses:
    """All ways round the callback in one model.

    Attributes:
        found: those that keep their layers from being counted.
        slower: why vLLM takes a slower kernel where it is observed; None if it doesn't.
    """

    found: tuple[Bypass, ...]
    slower: str | None = None

    def reason(self, layer: int) -> str | None:
        """Why not all of a layer's tokens can be seen; None if they can."""
        return next((item.reason for item in self.found if layer in item.layers), None)


def find_bypasses(model: nn.Module, vllm_config: Any, *, leave_fast_kernels: bool = False) -> Bypasses:
    """The ways round the callback in a loaded model.

    Args:
        model: the target model.
        vllm_config: vLLM's configuration.
        leave_fast_kernels: leave layers alone where a callback would make vLLM take a slower kernel.
    """
    found: list[Bypass] = []
    slower: str | None = None
    for path, module in model.named_modules():
        layer = layer_of_path(path)
        for look in _LOOKS:
            try:
                bypass = look(_At(module, layer, vllm_config))
            except Exception as error:  # noqa: BLE001 - what can't be told is not counted
                where = _EVERY if layer is None else frozenset({layer})
                bypass = Bypass(where, f"{type(module).__name__} can't be judged: {error!r}")
            if bypass is not None:
                found.append(bypass)
        if _has_fused_front(module):
            slower = SLOWER_FRONT
    if slower is not None and leave_fast_kernels:
        found.append(Bypass(_EVERY, f"MOESCOPE_LEAVE_FAST_KERNELS leaves it alone: {slower}"))
        slower = None
    return Bypasses(tuple(found), slower)


class _At(NamedTuple):
    """Where one looks: a module, the layer by its path, and vLLM's configuration."""

    module: nn.Module
    layer: int | None
    vllm_config: Any


def _decoder_replay(at: _At) -> Bypass | None:
    """DeepSeek-V4.1: in prefill the last layers run on each request's last rows, in a batch of their own."""
    start = _own(at.module, "decoder_replay_start")
    if _own(at.module, "decoder_replay_layers") is None or not isinstance(start, int):
        return None
    if _keeps_all_rows(at.vllm_config):
        return None
    return Bypass(
        range(start, _EVERY.stop),
        "decoder replay: in prefill this layer runs on each request's last rows only, so its rows are not "
        "the step's tokens; --no-swa-bounded-replay has it run on all of them",
    )


def _keeps_all_rows(vllm_config: Any) -> bool:
    """Whether nothing is trimmed, in vLLM 0.33, and no graph breaks out to a batch that could be trimmed."""
    outputs = getattr(vllm_config, "aux_output_config", None)
    compilation = getattr(vllm_config, "compilation_config", None)
    returns = bool(getattr(outputs, "enable_return_routed_experts", False))
    return returns and not getattr(compilation, "cudagraph_decoder_replay", True)


def _mono_layer(at: _At) -> Bypass | None:
    """DeepSeek-V4 and V4.1 on ROCm: decode steps run the layer as two kernels, which route inside."""
    mono = _own(at.module, "mono")
    if at.layer is None or mono is None:
        return None
    return Bypass(
        frozenset({at.layer}),
        f"{type(mono).__name__} routes inside its kernel in decode steps; start vLLM without --monokernel",
    )


def _specialized_decode(at: _At) -> Bypass | None:
    """Kimi-K3 (AMD and NVIDIA) and MiniMax-M3 (AMD): decode steps run in kernels that route inside."""
    config = _own(at.module, "specialized_decode_config")
    if config is None or _is_v41(at.module):  # V4.1's calls the router while that has a callback
        return None
    first, last = getattr(config, "first_layer", None), getattr(config, "last_layer", None)
    layers = range(first, last + 1) if isinstance(first, int) and isinstance(last, int) else _EVERY
    kernels = getattr(at.vllm_config, "kernel_config", None)
    flag = (
        "--monokernel"
        if getattr(kernels, "monokernel", False)
        else "decode_backend=latency_specialized in --additional-config"
    )
    return Bypass(
        layers,
        f"the specialized decode of {type(at.module).__name__} routes inside; start vLLM without {flag}",
    )


def _prepared_nvfp4(at: _At) -> Bypass | None:
    """Muse Spark with NVFP4 on SM100 and TP > 1: up to 256 tokens, experts get prepared routing."""
    prepares: Callable[[int], bool] | None = getattr(at.module, "_prepares_nvfp4_inputs", None)
    if at.layer is None or prepares is None or not prepares(1):
        return None
    return Bypass(
        frozenset({at.layer}),
        "small batches take forward_prepared_nvfp4, which never calls the router; "
        "muse_spark_tep_fused_moe_input_quant and muse_spark_tep_aux_stream_routing set to false by "
        "--hf-overrides have it called",
    )


def _small_batches(at: _At) -> Bypass | None:
    """Flint in BF16 on one SM100: small batches take a kernel that routes, on the experts of the runner."""
    kernel = _own(at.module, "bf16_decode")
    if at.layer is None or kernel is None:
        return None
    return Bypass(
        frozenset({at.layer}),
        f"small batches take {type(kernel).__name__}, which routes inside; vLLM doesn't take it "
        "with TP > 1 or --enable-expert-parallel",
    )


_LOOKS: Final = (_decoder_replay, _mono_layer, _specialized_decode, _prepared_nvfp4, _small_batches)


def _has_fused_front(module: nn.Module) -> bool:
    return _is_v41(module) and _own(module, "specialized_decode_config") is not None


def _is_v41(module: nn.Module) -> bool:
    return any(base.__module__.startswith(_V41_MODEL) for base in type(module).__mro__)


def _own(module: nn.Module, name: str) -> Any:
    """An attribute or a child that the module itself holds, as against properties; None without it."""
    return module.__dict__.get(name, module._modules.get(name))
