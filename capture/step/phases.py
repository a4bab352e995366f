"""Prefill and decode: of which phase each token of a step is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moescope.capture.seam.ends import prompt_length
from moescope.capture.seam.requests import is_of_remote_prefill, scheduled_tokens
from moescope.capture.step.batch import BatchRequests
from moescope.capture.step.totals import StepTokens
from moescope.capture.step.word import Phase

UInt8Array = npt.NDArray[np.uint8]


class PhaseTracker:
    """Knows of each live request whether its prompt is computed, from the scheduler's outputs alone.

    A token is a decode token if the whole prompt of its request was computed before the step. A preempted
    request starts over: its tokens are prefill until its prompt is computed again. In a step of decode tokens
    only, the usual one, no request is looked at. Draft tokens are always decode tokens: where a single token
    of a prompt is left, vLLM pads it with drafts, so that it looks like a step of decode.

    Where another instance computed the prompt, vLLM loads it and computes its last token again, because no
    token can be sampled otherwise. That token is a decode token: its prefill was elsewhere. A request is of
    that kind on an instance that only decodes, or if its client said so; and all of its prompt but the last
    token must have been there when it started. Elsewhere that is a hit of the local prefix cache, and the
    token is prefill. What is computed again of a prompt beyond the last token is prefill, too.

    Args:
        decodes_only: the instance's role is decode.
    """

    def __init__(self, decodes_only: bool = False) -> None:
        self._decodes_only = decodes_only
        self._prompts: dict[str, int] = {}
        self._prefilling: set[str] = set()
        self._elsewhere: set[str] = set()
        self._drafts: dict[str, int] = {}
        self._decode = StepTokens(0, 0)

    def begin_step(self, scheduler_output: Any) -> StepTokens:
        """A step is about to run, or a call that only says which requests are done."""
        for request_id in scheduler_output.finished_req_ids:
            self._prompts.pop(request_id, None)
            self._prefilling.discard(request_id)
            self._elsewhere.discard(request_id)
        for new in scheduler_output.scheduled_new_reqs:
            self._prompts[new.req_id] = prompt_length(new)
            if self._decodes_only or is_of_remote_prefill(new):
                self._elsewhere.add(new.req_id)
            self._note(new.req_id, new.num_computed_tokens, starts=True)
        cached = scheduler_output.scheduled_cached_reqs
        if cached.resumed_req_ids:
            self._prefilling.update(cached.resumed_req_ids)
        if self._prefilling:
            for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
                if request_id in self._prefilling:
                    self._note(request_id, computed, starts=request_id in cached.resumed_req_ids)
        total = scheduled_tokens(scheduler_output)
        if not self._prefilling:
            if self._decode.tokens != total:  # a steady batch has as many tokens in each step
                self._decode = StepTokens(total, total)
            return self._decode
        num_tokens = scheduler_output.num_scheduled_tokens
        self._drafts = self._drafts_behind_prompts(scheduler_output)
        prefill = sum(num_tokens.get(name, 0) for name in self._prefilling) - sum(self._drafts.values())
        return StepTokens(total, total - prefill)

    @property
    def all_decode(self) -> bool:
        """Whether the prompts of all live requests are computed, so that a like step has the same phases."""
        return not self._prefilling

    def of_tokens(self, batch: BatchRequests) -> UInt8Array:
        """`Phase` of each token of the step that began last, in the order of the batch: uint8 [tokens]."""
        phases = [Phase.PREFILL if name in self._prefilling else Phase.DECODE for name in batch.request_ids]
        of_tokens = np.repeat(np.array(phases, np.uint8), batch.num_tokens)
        if self._drafts:
            for name, end in zip(batch.request_ids, np.cumsum(batch.num_tokens).tolist(), strict=True):
                of_tokens[end - self._drafts.get(name, 0) : end] = Phase.DECODE
        return of_tokens

    def _drafts_behind_prompts(self, scheduler_output: Any) -> dict[str, int]:
        """Draft tokens of the step by request, of requests whose prompt the step computes."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        return {name: len(drafts[name]) for name in self._prefilling if name in drafts} if drafts else {}

    def _note(self, request_id: str, computed: int, starts: bool) -> None:
        prompt = self._prompts.get(request_id, 0)
        loaded = starts and 0 < computed == prompt - 1 and request_id in self._elsewhere
        if computed < prompt and not loaded:
            self._prefilling.add(request_id)
        else:
            self._prefilling.discard(request_id)
