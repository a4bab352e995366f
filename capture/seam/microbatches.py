"""Microbatches: the parts of a step that vLLM computes in turns (``--enable-dbo``, ``--ubatch-size``).

Each microbatch has a thread and a forward context of its own. One thread runs at a time, and hands over to
the next where ranks exchange their tokens. All of them compute in one stream; in a CUDA graph they are
captured together. All DP ranks split a step, or none does, and each pads its rows to the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from moescope.capture.seam.features import ubatching_module
from moescope.capture.seam.forward import step_rows
from moescope.capture.seam.rows import Microbatch, StepRows


def rows_reader(most: int) -> Callable[[], StepRows]:
    """What tells the sizes of the forward pass under way, where a step has `most` microbatches at most.

    Raises:
        LookupError: this vLLM runs microbatches in a way that moescope doesn't know.
    """
    return MicrobatchedRows(most) if most > 1 else step_rows


class MicrobatchedRows:
    """Tells the sizes of the forward pass under way where vLLM may split steps; called in a routing call.

    vLLM 0.33 says where a microbatch begins in its step. Before that its place follows from the sizes of the
    microbatches before it, which are read when the first of them routes: later the first ones may be done.

    Args:
        most: how many microbatches a step may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._vllm = ubatching_module()
        self._starts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def __call__(self) -> StepRows:
        """The sizes, in a microbatch its own.

        Raises:
            LookupError: which part of the step the pass is can't be known.
        """
        return step_rows(self._current()) if self._vllm.dbo_enabled() else step_rows()

    def _current(self) -> Microbatch:
        number, count = self._vllm.dbo_current_ubatch_id(), self._vllm._NUM_UBATCHES
        contexts = self._vllm._CURRENT_CONTEXTS[:count]
        if not 0 <= number < count <= self._most or contexts[number] is None:
            raise LookupError(f"microbatch {number} of {count}, where a step has {self._most} at most")
        start = getattr(contexts[number], "token_offset", 0) or self._start(number, contexts)
        return Microbatch(number, start, number == count - 1)

    def _start(self, number: int, contexts: list[Any]) -> int:
        """Where a microbatch begins, by the sizes of those before it."""
        mine = contexts[number]
        if mine not in self._starts:
            self._note_starts(contexts)
        if mine not in self._starts:
            raise LookupError(f"where microbatch {number} of {len(contexts)} begins in its step is not known")
        return self._starts[mine]

    def _note_starts(self, contexts: list[Any]) -> None:
        """Note where the microbatches begin, as far as each one before them is under way and has a size."""
        start = 0
        for context in contexts:
            if context is None:
                return
            self._starts[context] = start
            size = _size(context.forward_context)
            if size is None:
                return
            start += size


def _size(context: Any) -> int | None:
    """Rows of a microbatch, by its forward context; the same on all DP ranks."""
    metadata = context.dp_metadata
    sizes = set() if metadata is None else set(metadata.num_tokens_across_dp_cpu.tolist())
    return int(sizes.pop()) if len(sizes) == 1 else None
