"""Prefill and decode: of which phase each token of a step is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moescope.capture.seam.requests import prompt_length, scheduled_tokens
from moescope.capture.step.batch import BatchRequests
from moescope.capture.step.totals import StepTokens
from moescope.capture.step.word import Phase

UInt8Array = npt.NDArray[np.uint8]


class PhaseTracker:
    """Knows of each live request whether its prompt is computed, from the scheduler's outputs alone.

    A token is a decode token if the whole prompt of its request was computed before the step. A preempted
    request starts over: its tokens are prefill until its prompt is computed again. In a step of decode tokens
    only, the usual one, no request is looked at.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._prefilling: set[str] = set()

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
        total = scheduled_tokens(scheduler_output)
        if not self._prefilling:
            return StepTokens(total, total)
        num_tokens = scheduler_output.num_scheduled_tokens
        return StepTokens(total, total - sum(num_tokens.get(name, 0) for name in self._prefilling))

    def of_tokens(self, batch: BatchRequests) -> UInt8Array:
        """`Phase` of each token of the step that began last, in the order of the batch: uint8 [tokens]."""
        phases = [Phase.PREFILL if name in self._prefilling else Phase.DECODE for name in batch.request_ids]
        return np.repeat(np.array(phases, np.uint8), batch.num_tokens)

    def _note(self, request_id: str, computed: int) -> None:
        if computed < self._prompts.get(request_id, 0):
            self._prefilling.add(request_id)
        else:
            self._prefilling.discard(request_id)
