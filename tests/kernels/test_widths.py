"""Integers that kernels get by value. Triton gives them 32 bits where the value fits, else 64."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.kernels.device import (  # skips first, where there is neither a GPU nor the interpreter
    INTERPRETED,
)

# isort: split
import triton.language as tl

from moescope.capture.counting.kernels import layer_kernel, step_kernel
from moescope.capture.counting.pointer_tables import TableEntry, table_entry
from moescope.capture.counting.trace_kernel import traced_arguments
from moescope.capture.step.word import Phase, pack_step
from tests.kernels.bench import Bench, make_ids, span

on_cpus = pytest.mark.skipif(not INTERPRETED, reason="places memory of the host where it wants it")

PAGE = mmap.PAGESIZE
MAP_NORESERVE = 0x4000
MAP_FIXED_NOREPLACE = 0x100000
FAILED = ctypes.c_void_p(-1).value
LARGE = 1 << 30
"""A number of counts or experts of which twice as many need more than 31 bits."""

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Memory:
    """Zeros of this process; only pages that are written take room."""

    def __init__(self) -> None:
        self._mapped: list[tuple[int, int]] = []

    def of(self, size: int, dtype: torch.dtype, address: int = 0, start: int = 0) -> torch.Tensor:
        """All but the first `start` of `size` bytes at `address`, or wherever there is room.

        Raises:
            OSError: there is no room; FileExistsError: something else is at the address.
        """
        flags = (
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | (MAP_FIXED_NOREPLACE if address else 0)
        )
        found = libc.mmap(address or None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found == FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        self._mapped.append((found, size))
        return torch.frombuffer((ctypes.c_char * size).from_address(found), dtype=dtype, offset=start)

    def between(self, low: int, high: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """`size` bytes at the first of some addresses from `low` up to `high` where nothing is."""
        for address in range(low, high - size, 16 << 20):
            with contextlib.suppress(FileExistsError):
                return self.of(size, dtype, address)
        raise AssertionError(f"no room from {low:#x} to {high:#x}")

    def close(self) -> None:
        """Give it back: tensors in it must not be used any more."""
        for address, size in self._mapped:
            assert libc.munmap(address, size) == 0


@pytest.fixture
def memory() -> Iterator[Memory]:
    mapped = Memory()
    yield mapped
    mapped.close()


@on_cpus
@pytest.mark.parametrize(
    ("low", "high"), [(1 << 28, 1 << 31), (1 << 31, 1 << 32), (1 << 32, 1 << 40)], ids=["31", "32", "33"]
)
@pytest.mark.parametrize("phase", Phase)
def test_ids_at_any_address(memory: Memory, low: int, high: int, phase: Phase) -> None:
    """Python's heap is below 2**31 in builds that are not position-independent, such as Debian's."""
    bench = Bench([(60, 4)], 90, phase)
    made = make_ids(100, bench.layers[0], torch.int32, 1)
    ids = memory.between(low, high, PAGE, torch.int32)[: made.numel()].view(made.shape).copy_(made)
    assert low <= ids.data_ptr() < high
    bench.count({0: ids}, {0: span(80, start=10)})
    assert sum(bench.check()) > 0


@pytest.mark.parametrize("integers", ["i32", "i64"])
def test_both_widths_compile_for_a_gpu(integers: str, tmp_path: Path) -> None:
    """The compiler takes no int32 for a pointer; in a process of its own, which does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled", integers],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@on_cpus
@pytest.mark.parametrize("kernel", ["step", "layer"])
@pytest.mark.parametrize("phase", Phase)
def test_more_counts_than_31_bits_can_say(memory: Memory, kernel: str, phase: Phase) -> None:
    """The numbers of rows come after twice `num_counts` counts: their place is computed in 64 bits."""
    bench = Bench([(60, 4)], 90, phase, ep_size=0)
    ids = make_ids(100, bench.layers[0], torch.int32, 1)
    bench.count({0: ids}, {0: span(90)})
    # A kernel that computes in 32 bits would add in front of the counts; there is memory there too.
    before = 2 * LARGE * 8
    flat = memory.of(before + 2 * LARGE * 8 + PAGE, torch.int64, start=before)
    bench.begin()
    if kernel == "step":
        count_step(bench, table_entry(ids, span(90)), flat=flat, num_counts=LARGE)
    else:
        count_layer(bench, table_entry(ids, span(90)), flat=flat, num_counts=LARGE)
    expected = bench.reference.flat
    assert flat[:60].tolist() == expected[:60].tolist()
    assert flat[LARGE : LARGE + 60].tolist() == expected[60:120].tolist()
    assert flat[2 * LARGE : 2 * LARGE + 2].tolist() == expected[120:].tolist()
    assert sum(expected[120:].tolist()) == 90


@on_cpus
def test_a_map_of_more_experts_than_31_bits_can_say(memory: Memory) -> None:
    """The EP ranks of a layer's experts are behind those of the layers before it."""
    bench = Bench([(60, 4)], 90)
    ids = make_ids(100, bench.layers[0], torch.int32, 1)
    bench.count({0: ids}, {0: span(90)})
    assert bench.reference.ring is not None
    expected = bench.reference.ring.loads[0, 0, 0].clone()
    before = LARGE * 4
    ep_ranks = memory.of(before + 3 * LARGE * 4 + PAGE, torch.int32, start=before)
    ep_ranks[3 * LARGE : 3 * LARGE + 60] = bench.reference.ring.ep_ranks[0]
    loads = torch.zeros(1, 4, 8, dtype=torch.int32)
    bench.layer.step_word.fill_(pack_step(90, Phase.PREFILL, 0))
    flat = torch.zeros(2 * 60 + 2 * 4 + 2 * 4 * 8, dtype=torch.int64)
    count_layer(
        bench,
        table_entry(ids, span(90)),
        flat=flat,
        layer=3,
        num_layers=4,
        ep_ranks=ep_ranks,
        max_experts=LARGE,
        ring=loads,
        ep_size=8,
        RANKS=8,
    )
    assert loads[0, 3].tolist() == expected.tolist()
    assert int(expected.sum()) > 0
    assert loads[0, :3].sum() == 0


def count_step(bench: Bench, entry: TableEntry, flat: torch.Tensor, num_counts: int) -> None:
    """The step kernel over one layer, without a ring."""
    buffers = bench.step
    step_kernel[(1, 1)](
        bench.table({0: entry}),
        buffers.step_word,
        buffers.phases,
        flat,
        num_counts,
        flat,
        0,
        flat,
        flat,
        0,
        1,
        0,
        **traced_arguments(None, buffers.step_word),
        IDS=tl.int32,
        BINS=128,
        RANKS=0,
        RULE=0,
        BLOCK=1024,
    )


def count_layer(bench: Bench, entry: TableEntry, **arguments: object) -> None:
    """The layer kernel over a layer of 60 experts; `arguments` in the place of those without a ring."""
    buffers = bench.layer
    unused = buffers.flat
    usual = {
        "layer": 0,
        "counts_start": 0,
        "num_experts": 60,
        "step_word": buffers.step_word,
        "phases": buffers.phases,
        "flat": buffers.flat,
        "num_counts": buffers.num_counts,
        "num_layers": 1,
        "ep_ranks": unused,
        "max_experts": 0,
        "maps": unused,
        "ring": unused,
        "microbatches": 1,
        "ep_size": 0,
        "RANKS": 0,
        "RULE": 0,
    }
    layer_kernel[(1,)](
        *entry,
        **traced_arguments(None, buffers.step_word),
        **{**usual, **arguments},
        IDS=tl.int32,
        BINS=128,
        BLOCK=1024,
    )
