"""The part of the counting kernels that copies traced rows. Equal to `staging.copy_traced_rows`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from moescope.capture.counting.staging import TraceStaging

_STAGED = {torch.uint8: tl.uint8, torch.uint16: tl.uint16}
_NOT_TRACED = {"STAGED": None, "MASKED": 0}


@triton.jit
def copy_traced(  # type: ignore[no-untyped-def]
    address,
    rows,
    first_token,
    top_k,
    row_stride,
    column_stride,
    num_experts,
    row_map,
    staging,
    width,
    column,
    IDS: tl.constexpr,  # noqa: N803
    STAGED: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Copy every num_programs(0)-th block of those slots whose rows the row map wants; all int64."""
    if tl.load(row_map) > 0:
        ids = address.to(tl.pointer_type(IDS))
        slots = rows * top_k
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, slots, tl.num_programs(0).to(tl.int64) * BLOCK):
            slot = start + tl.arange(0, BLOCK).to(tl.int64)
            row = slot // top_k
            choice = slot % top_k
            target = tl.load(row_map + 1 + first_token + row, mask=slot < slots, other=-1).to(tl.int64)
            wanted = (slot < slots) & (target >= 0)
            offsets = row * row_stride + choice * column_stride
            expert = tl.load(ids + offsets, mask=wanted, other=0).to(tl.int64)
            expert = tl.where((expert >= 0) & (expert < num_experts), expert, MASKED)
            tl.store(staging + target * width + column + choice, expert.to(STAGED), mask=wanted)


def traced_arguments(staging: TraceStaging | None, unused: torch.Tensor) -> dict[str, Any]:
    """What a kernel needs to copy traced rows; without tracing `unused` stands for the tensors."""
    if staging is None:
        return {"row_map": unused, "staging": unused, "columns": unused, "width": 0, **_NOT_TRACED}
    return {
        "row_map": staging.row_map,
        "staging": staging.rows,
        "columns": staging.columns,
        "width": staging.width,
        "STAGED": _STAGED[staging.rows.dtype],
        "MASKED": staging.masked,
    }
