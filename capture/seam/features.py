"""What of vLLM's insides the installed version has.

Each thing is looked for by itself, whatever the version says: what is missing costs only what rests on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

Sorter = Callable[[Any, Any], Sequence[str]]
"""Takes the scheduler's output and the model runner; gives a step's request ids in the order of its rows."""

_BY_TOKENS: Final = "sorted(num_tokens_per_req, key=num_tokens_per_req.get)"
"""How runner V2 orders requests in vLLM 0.20 to 0.25, within a method of its own."""

MOST_MICROBATCHES: Final = 8
"""Of a step, so that its layers are covered: as many are tested. Tables and loads grow with them."""


def moe_class() -> type[Any]:
    """The class of vLLM's modules that route and compute the experts of a layer.

    It is `MoERunner` from vLLM 0.24 on. Before that a `FusedMoE` holds the router and the kernel, and the
    runner is no more than its helper.

    Raises:
        LookupError: this vLLM has neither.
    """
    from vllm.model_executor.layers.fused_moe import layer

    runner: Any = getattr(layer, "MoERunner", None)
    if isinstance(runner, type) and hasattr(runner, "is_monolithic"):
        return runner
    fused: Any = getattr(layer, "FusedMoE", None)
    if isinstance(fused, type) and issubclass(fused, torch.nn.Module):
        return fused
    raise LookupError("this vLLM has no MoE layers as moescope knows them (MoERunner, FusedMoE)")


def is_monolithic(module: Any) -> bool:
    """Whether the kernel of an MoE module routes inside."""
    found = getattr(module, "is_monolithic", None)
    return bool(quant_method(module).is_monolithic if found is None else found)


def quant_method(module: Any) -> Any:
    """What runs the experts of an MoE module."""
    return getattr(module, "routed_experts", module).quant_method


def monolithic_kernel(module: Any) -> Any:
    """The kernel of an MoE module that routes inside; None if the module has none that we know."""
    kernel = getattr(
        getattr(getattr(module, "routed_experts", module), "quant_method", None), "moe_kernel", None
    )
    return getattr(getattr(kernel, "impl", None), "fused_experts", None)


def source_class() -> Any:
    """`RoutedExpertsCaptureSource`, what modules are that route by themselves; None before vLLM 0.28."""
    try:
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsCaptureSource
    except ImportError:
        return None
    return RoutedExpertsCaptureSource


def sink_class() -> Any:
    """`RoutedExpertsSink`, to which a monolithic kernel writes its ids; None before vLLM 0.32."""
    try:
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsSink
    except ImportError:
        return None
    return RoutedExpertsSink


def expert_map_function() -> Any:
    """vLLM's `determine_expert_map`: which experts an EP rank holds."""
    try:
        from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map
    except ImportError:  # vLLM 0.20 and 0.21
        from vllm.model_executor.layers.fused_moe.layer import determine_expert_map
    return determine_expert_map


def runs_v2(vllm_config: Any) -> bool:
    """Whether vLLM runs model runner V2.

    Raises:
        LookupError: this vLLM doesn't say.
    """
    found = getattr(vllm_config, "use_v2_model_runner", None)
    if found is None:  # vLLM 0.20 and 0.21 ask their environment
        from vllm import envs

        found = getattr(envs, "VLLM_USE_V2_MODEL_RUNNER", None)
    if found is None:
        raise LookupError("this vLLM doesn't say which model runner it uses")
    return bool(found)


def sorter_v2() -> Sorter:
    """How runner V2 orders a step's requests.

    It calls vLLM's own function, which takes the draft tokens too from vLLM 0.28 on. Up to 0.25 vLLM has
    none: the runner sorts by the number of tokens.

    Raises:
        LookupError: this vLLM orders them in a way that moescope doesn't know.
    """
    from vllm.v1.worker.gpu import model_runner

    sort = getattr(model_runner, "sort_batch_req_ids", None)
    if sort is None:
        if _BY_TOKENS in inspect.getsource(model_runner.GPUModelRunner.prepare_inputs):
            return lambda output, _: sorted(output.num_scheduled_tokens, key=output.num_scheduled_tokens.get)
        raise LookupError("this vLLM has no sort_batch_req_ids, and V2 orders its batch in another way")
    parameters = list(inspect.signature(sort).parameters)
    if parameters == ["num_tokens_per_req", "decode_query_len"]:
        return lambda output, runner: sort(output.num_scheduled_tokens, runner.decode_query_len)
    if parameters == ["num_tokens_per_req", "draft_tokens", "decode_query_len"]:
        return lambda output, runner: sort(
            output.num_scheduled_tokens, output.scheduled_spec_decode_tokens, runner.decode_query_len
        )
    raise LookupError(f"vLLM's sort_batch_req_ids takes {parameters}, which moescope doesn't know")


def microbatches(parallel_config: Any) -> int:
    """How many microbatches vLLM may split a step into (DBO, ``--ubatch-size``); 1 where it splits none.

    A vLLM that has no setting for it has no microbatches.
    """
    if getattr(parallel_config, "enable_dbo", False):
        return 2
    return max(1, int(getattr(parallel_config, "ubatch_size", 1)))


def ubatching_module() -> Any:
    """vLLM's module that runs microbatches: which one a thread computes, and all that are under way.

    Raises:
        LookupError: this vLLM runs them in a way that moescope doesn't know.
    """
    try:
        from vllm.v1.worker import ubatching
    except ImportError:
        raise LookupError("this vLLM has no vllm.v1.worker.ubatching") from None
    needed = ("dbo_enabled", "dbo_current_ubatch_id", "_CURRENT_CONTEXTS", "_NUM_UBATCHES")
    missing = [name for name in needed if not hasattr(ubatching, name)]
    if missing:
        raise LookupError(f"this vLLM's ubatching has no {', '.join(missing)}")
    return ubatching
