"""Compiles the kernels for a GPU of compute capability 9.0, which needs none.

python -m tests.kernels.compiled i32

The argument is the type of the integers that the kernels get by value, which Triton takes from their values.
"""

from __future__ import annotations

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moescope.capture.counting.device_maps import NO_MAPS
from moescope.capture.counting.kernels import layer_kernel, step_kernel
from moescope.capture.seam.replica_rule import ReplicaRule

POINTERS = {
    "table": "*i64",
    "step_word": "*i64",
    "phases": "*u8",
    "flat": "*i64",
    "ep_ranks": "*i32",
    "maps": "*i64",
    "ring": "*i32",
    "row_map": "*i32",
    "staging": "*u8",
    "columns": "*i64",
}
CONSTANTS = {"IDS": tl.int32, "STAGED": tl.uint8, "MASKED": 255, "BLOCK": 1024}

VARIANTS = [
    (128, 8, NO_MAPS),
    (0, 8, NO_MAPS),
    (128, 8, ReplicaRule.ONE_COPY),
    (128, 64, ReplicaRule.ROW_HASH),
    (128, 4096, ReplicaRule.FLAT_SLOT),
    (0, 64, ReplicaRule.ROW_HASH),
]
"""Bins of the histogram of experts, lanes for EP ranks, rule of replicas."""


def compile_both(integers: str) -> None:
    """Compile both kernels, with a histogram and without, by each rule; Triton's errors come through."""
    for kernel in (step_kernel, layer_kernel):
        for bins, ranks, rule in VARIANTS:
            constants = {**CONSTANTS, "BINS": bins, "RANKS": ranks, "RULE": rule}
            names = [parameter.name for parameter in kernel.params]
            types = {
                name: "constexpr" if name in constants else POINTERS.get(name, integers) for name in names
            }
            values = {(names.index(name),): value for name, value in constants.items()}
            source = ASTSource(fn=kernel, signature=types, constexprs=values)
            assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


if __name__ == "__main__":
    compile_both(sys.argv[1])
