"""What the forward pass under way says of its rows."""

from __future__ import annotations

import sys
from typing import Any

from moescope.capture.seam.rows import WHOLE, Microbatch, StepRows


def step_rows(microbatch: Microbatch = WHOLE) -> StepRows:
    """The sizes of the step under way, from vLLM's forward context; reads no tensor on a device.

    Each microbatch has a forward context of its own, which vLLM puts in place whenever it goes on with that
    microbatch. In vLLM 0.20 to 0.33 it always has metadata of DP, with the sizes of that microbatch; runner
    V1's batch descriptor there is that of the whole step.

    ``StepRows.num_tokens`` is N, the rows of the batch before the model shards them, padding included:

    - the batch descriptor's, where there is one. In vLLM 0.24 to 0.33 both runners give one to every pass of
      a step, eager ones too, and to every dummy and profiling pass. Since 0.33 every context that says a size
      has one;
    - else the length of the attention layers' slot mappings. Up to 0.32 runner V2 captures its full CUDA
      graphs, and warms up for them, without a descriptor; there each slot mapping has exactly N entries;
    - else None: not known.

    The mask of padding rows in the context is no source: models that shard replace it by their shard's.
    """
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    metadata = context.dp_metadata
    if metadata is not None:
        return StepRows(
            metadata.num_tokens_across_dp_cpu.tolist(), metadata.local_sizes, microbatch=microbatch
        )
    descriptor = context.batch_descriptor if microbatch == WHOLE else None
    size = _slots(context.slot_mapping) if descriptor is None else descriptor.num_tokens
    return StepRows(None, None, size, microbatch)


def _slots(slot_mapping: Any) -> int | None:
    """The length that all layers' slot mappings have; None without any, and if they differ.

    With micro-batches it is a list of such mappings, one a batch, which says nothing of a single one.
    """
    if not isinstance(slot_mapping, dict):
        return None
    lengths = {len(slots) for slots in slot_mapping.values()}
    return lengths.pop() if len(lengths) == 1 else None


def capture_breaks() -> bool:
    """Whether a CUDA graph is being captured that vLLM may interrupt to run a part of the model eagerly.

    Such a part runs eagerly in each replay as well, and its routing calls call back then: vLLM's breakable
    CUDA graphs, of which DeepSeek-V4.1's decoder replay is a user. vLLM never interrupts full graphs.
    """
    # vLLM imports this module where it may capture so; what was not imported captures nothing.
    module: Any = sys.modules.get("vllm.compilation.breakable_cudagraph")
    if module is None or not module.BreakableCUDAGraphCapture.is_active():
        return False
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return True
    return bool(get_forward_context().cudagraph_runtime_mode != CUDAGraphMode.FULL)
