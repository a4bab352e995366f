"""Prefill and decode: of which phase each token of a step is, and how the device gets to know it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from moescope.capture.seam.requests import prompt_length, scheduled_tokens
from moescope.capture.step.totals import StepTokens
from moescope.capture.step.word import Phase

UInt8Array = npt.NDArray[np.uint8]

RING: Final = 4


class PhaseTracker:
    """Knows of each live request whether its prompt is computed, from the scheduler's outputs alone.

    A token is a decode token if the whole prompt of its request was computed before the step. A preempted
    request starts over, so what it computes again counts as prefill until its prompt is computed again.
    A step of decode tokens only, the usual one, costs no look at its requests.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._prefilling: set[str] = set()
        self._num_tokens: dict[str, int] = {}

    def begin_step(self, scheduler_output: Any) -> StepTokens:
        """A step is about to run, or a call that only says which requests are done."""
        for request_id in scheduler_output.finished_req_ids:
            self._prompts.pop(request_id, None)
            self._prefilling.discard(request_id)
        for new in scheduler_output.scheduled_new_reqs:
            self._prompts[new.req_id] = prompt_length(new)
            self._note(new.req_id, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        self._prefilling.update(cached.resumed_req_ids)
        if self._prefilling:
            for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
                if request_id in self._prefilling:
                    self._note(request_id, computed)
        self._num_tokens = scheduler_output.num_scheduled_tokens
        total = scheduled_tokens(scheduler_output)
        if not self._prefilling:
            return StepTokens(total, total)
        return StepTokens(total, total - sum(self._num_tokens.get(name, 0) for name in self._prefilling))

    def of_tokens(self, order: Sequence[str]) -> UInt8Array:
        """`Phase` of each token of the step, uint8 [tokens]; `order`: the requests as the batch has them."""
        phases = [Phase.PREFILL if name in self._prefilling else Phase.DECODE for name in order]
        return np.repeat(np.array(phases, np.uint8), [self._num_tokens[name] for name in order])

    def _note(self, request_id: str, computed: int) -> None:
        if computed < self._prompts.get(request_id, 0):
            self._prefilling.add(request_id)
        else:
            self._prefilling.discard(request_id)


class PhaseUploads:
    """Brings the phases of mixed steps' tokens to the device: a copy in the steps' stream, never waited for.

    Args:
        phases: uint8 [max_tokens], where to.
    """

    def __init__(self, phases: torch.Tensor) -> None:
        self._phases = phases
        self._pinned: deque[_Pinned] = deque()
        if phases.device.type == "cuda":
            self._pinned.extend(_Pinned(phases.numel()) for _ in range(RING))

    def upload(self, values: UInt8Array) -> None:
        """The phases of the step's first tokens.

        Raises:
            ValueError: more than ``max_tokens``.
        """
        if len(values) > self._phases.numel():
            raise ValueError(f"a step of {len(values)} tokens, where {self._phases.numel()} are the most")
        target = self._phases[: len(values)]
        if not self._pinned:
            target.copy_(torch.from_numpy(values))
            return
        # The oldest if the device has read it, else a new one: never a wait.
        free = self._pinned[0].read.query()  # type: ignore[no-untyped-call]
        pinned = self._pinned.popleft() if free else _Pinned(self._phases.numel())
        pinned.values[: len(values)] = values
        target.copy_(pinned.host[: len(values)], non_blocking=True)
        pinned.read.record()
        self._pinned.append(pinned)


class _Pinned:
    """One host buffer, and the event after which the device no longer reads it."""

    def __init__(self, size: int) -> None:
        self.host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
        self.values: UInt8Array = self.host.numpy()
        self.read = torch.cuda.Event()  # type: ignore[no-untyped-call]
