"""What the forward pass under way says of its rows."""

from __future__ import annotations

from moescope.capture.seam.rows import StepRows


def step_rows() -> StepRows:
    """The sizes of the step under way, from vLLM's forward context; reads no tensor on a device."""
    from vllm.forward_context import get_forward_context

    metadata = get_forward_context().dp_metadata
    if metadata is None:
        return StepRows(None, None)
    return StepRows(metadata.num_tokens_across_dp_cpu.tolist(), metadata.local_sizes)
