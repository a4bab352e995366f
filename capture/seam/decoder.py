"""The decoder of a loaded model as a tree of modules: its layers, and which of them route or surely don't."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from torch import nn

_EXPERT_COUNTS: Final = (
    *("num_experts", "n_routed_experts", "num_routed_experts", "num_local_experts", "num_total_experts"),
    *("num_logical_experts", "n_experts"),
)
_TOP_KS: Final = (
    *("top_k", "topk", "num_experts_per_tok", "num_experts_per_token", "experts_per_token"),
    *("n_activated_experts", "moe_topk"),
)
_NAMED_MOE: Final = re.compile("moe|expert|mixture", re.IGNORECASE)
_MIXER: Final = re.compile("attn|attention|mamba|mixer|conv|ssm|delta|rotary|indexer", re.IGNORECASE)
_NORM: Final = re.compile("norm", re.IGNORECASE)
_MAX_DENSE_LINEARS: Final = 3  # gate, up and down


def language_part(model: nn.Module) -> nn.Module:
    """The language model of a multimodal model, whose towers have layers of their own; else the model."""
    get = getattr(model, "get_language_model", None)
    if get is None:
        return model
    try:
        part = get()
    except Exception:  # noqa: BLE001 - the whole model serves as well
        return model
    return part if isinstance(part, nn.Module) else model


def layer_of_path(path: str) -> int | None:
    """The first number in a module's path, as in ``model.layers.3.mlp.experts``; None without one."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def decoder_layers(model: nn.Module, depth: int) -> dict[int, nn.Module]:
    """The decoder layers that this pipeline stage holds, by index; empty if no list has `depth` entries."""
    lists = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and layer_of_path(name) is None
    )
    named = sorted(lists, key=lambda item: (not item[0].endswith("layers"), item[0].count(".")))
    if not named:
        return {}
    return {i: layer for i, layer in enumerate(named[0][1]) if not is_placeholder(layer)}


def is_placeholder(layer: nn.Module) -> bool:
    """Whether a module is another instance's or pipeline stage's; vLLM puts a `PPMissingLayer` there."""
    return type(layer).__name__ in ("PPMissingLayer", "StageMissingLayer")


def holds_no_experts(layer: nn.Module, experts: int) -> bool:
    """Whether a decoder layer surely has no MoE block: all its parameters are understood, and none routes.

    Beside attention (or what takes its place) it may have norms, and one MLP of at most three linear layers,
    none of which has an output for each expert.
    """
    linears: dict[str, list[nn.Module]] = {}
    for path, module in _outside_mixers(layer):
        shapes = [tuple(param.shape) for param in module.parameters(recurse=False)]
        if not shapes:
            continue
        if _is_linear(module):
            if _outputs(module) == experts:
                return False
            linears.setdefault(path.rpartition(".")[0], []).append(module)
        elif not _NORM.search(type(module).__name__) and any(len(shape) > 1 for shape in shapes):
            return False
    return len(linears) <= 1 and all(len(found) <= _MAX_DENSE_LINEARS for found in linears.values())


def _outside_mixers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module.named_children():
        if not _MIXER.search(type(child).__name__) or isinstance(child, nn.ModuleList):
            yield from _outside_mixers(child, f"{path}.{name}" if path else name)


def _is_linear(module: nn.Module) -> bool:
    from vllm.model_executor.layers.linear import LinearBase

    return isinstance(module, (LinearBase, nn.Linear))


def _outputs(module: Any) -> int | None:
    return getattr(module, "output_size", getattr(module, "out_features", None))


def routing_modules(
    model: nn.Module, known: Collection[nn.Module], experts: int
) -> Iterator[tuple[str, nn.Module]]:
    """Modules that route by themselves: they own expert weights, or say over how many experts they choose.

    Attention and what takes its place may have stacks of matrices too, one for each head (MLA's projections).
    So a module there counts only if its class has the name of an MoE block.

    Args:
        model: the decoder.
        known: the modules whose ids can be had. What is inside one of them, or around one, doesn't count.
        experts: of a layer by the config; 0: not known.

    Yields:
        Paths and modules. Of nested ones, those that own the weights come first, then the innermost.
    """
    taken = set(map(id, known))
    inside = {id(module) for runner in known for module in runner.modules()}
    mixers = (module for module in model.modules() if _MIXER.search(type(module).__name__))
    inside |= {id(part) for mixer in mixers for part in mixer.modules() if not _is_named_moe(part)}
    found = [
        (path, module)
        for path, module in model.named_modules()
        if id(module) not in inside
        and _routes(module, experts)
        and taken.isdisjoint(map(id, module.modules()))
    ]
    found.sort(key=lambda item: (not _owns_experts(item[1], experts), -item[0].count(".")))
    yield from found


def _routes(module: nn.Module, experts: int) -> bool:
    return _owns_experts(module, experts) or _has_expert_list(module) or _says_experts(module)


def _owns_experts(module: nn.Module, experts: int) -> bool:
    """Whether the module's own tensors are stacks of matrices, one for each expert that it holds."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    stacks = [int(tensor.shape[0]) for tensor in tensors if tensor.dim() >= 3]
    if _is_named_moe(module):
        return any(number > 1 for number in stacks)
    held = {number for number in stacks if number > 1 and experts and experts % number == 0}
    return any(stacks.count(number) > 1 for number in held)


def _is_named_moe(module: nn.Module) -> bool:
    return _NAMED_MOE.search(type(module).__name__) is not None


def _has_expert_list(module: nn.Module) -> bool:
    """Whether it has a list of expert modules and something to choose among them."""
    listed = any(
        name.endswith("experts") and isinstance(child, (nn.ModuleList, nn.ModuleDict)) and len(child) > 1
        for name, child in module.named_children()
    )
    return listed and any(re.search("gate|router", name) for name, _ in module.named_children())


def _says_experts(module: nn.Module) -> bool:
    def says(names: tuple[str, ...]) -> bool:
        return any(isinstance(module.__dict__.get(name), int) for name in names)

    return says(_EXPERT_COUNTS) and says(_TOP_KS)


def describe(layer: nn.Module) -> str:
    """The classes of a decoder layer's parts beside attention and norms, for a reason."""
    parts = (type(child).__name__ for child in layer.children())
    shown = [name for name in parts if not _MIXER.search(name) and not _NORM.search(name)]
    return ", ".join(dict.fromkeys(shown)) or type(layer).__name__
