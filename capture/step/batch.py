"""Whose rows a step's batch has, request by request: known before the step's forward pass is enqueued.

Routing callbacks can't tell it: none runs when a CUDA graph is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moescope.capture.seam.requests import BatchOrder, StepRequests, prompt_length, read_requests
from moescope.capture.wire import Int64Array

logger = logging.getLogger("vllm.moescope")


class BatchLayout(NamedTuple):
    """The requests of a step in the order of the batch's rows; each has consecutive rows, from row 0 on.

    Attributes:
        request_ids: of the n requests.
        num_tokens: int64 [n], rows of each; their sum is the step's number of tokens, drafts included.
        first_positions: int64 [n], the position of each one's first row in its request. With speculative
            decoding and asynchronous scheduling vLLM takes all earlier drafts for accepted here.
        prompt_tokens: int64 [n], the lengths of their prompts.
    """

    request_ids: Sequence[str]
    num_tokens: Int64Array
    first_positions: Int64Array
    prompt_tokens: Int64Array


class BatchWatch:
    """Reads the requests of each step and tells how its batch is laid out, once vLLM's runner knows.

    A fault ends the watch for good, with one line in the log; counting doesn't need it.

    Args:
        requests_read: called when a step begins, with its requests, before its layout is told.
        laid_out: called within `step_begins` (runner V2) or while vLLM prepares the step's inputs (V1), from
            the thread that enqueues the steps; never for a step whose layout can't be told.
        failed: called once when the watch ends.
    """

    def __init__(
        self,
        vllm_config: Any,
        requests_read: Callable[[StepRequests], None],
        laid_out: Callable[[BatchLayout], None],
        failed: Callable[[], None],
    ) -> None:
        self._requests_read = requests_read
        self._laid_out = laid_out
        self._on_failure = failed
        self._prompts: dict[str, int] = {}
        self._step: StepRequests | None = None
        self._order = BatchOrder(vllm_config, self._ordered, self._fail)
        self._failed = False

    def step_begins(self, scheduler_output: Any, model_runner: Any, wanted: bool = True) -> None:
        """A step is about to run, or a call that only says which requests are done.

        Nothing is told of a step that isn't `wanted`, which costs next to nothing.
        """
        if self._failed:
            return
        try:
            self._note_prompts(scheduler_output)
            if not wanted:
                return
            step = read_requests(scheduler_output)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fail(error)
            return
        self._requests_read(step)
        if step.num_tokens:
            self._step = step
            try:
                self._order.step_begins(scheduler_output, model_runner)
            except Exception as error:  # noqa: BLE001
                self._fail(error)

    def step_ends(self) -> None:
        """The step is enqueued: nothing is told any more."""
        self._step = None

    def close(self) -> None:
        """Leave the runner as it was."""
        self._step = None
        self._order.close()

    def _note_prompts(self, scheduler_output: Any) -> None:
        for request_id in scheduler_output.finished_req_ids:
            self._prompts.pop(request_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._prompts[new.req_id] = prompt_length(new)

    def _ordered(self, order: Sequence[str]) -> None:
        step, self._step = self._step, None
        if step is None:  # outside of a step, or told already
            return
        try:
            layout = lay_out(order, step, self._prompts)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return
        self._laid_out(layout)

    def _fail(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed, self._step = True, None
        logger.error("moescope: how batches are laid out is not known from here on: %r", error)
        self._on_failure()


def lay_out(order: Sequence[str], step: StepRequests, prompts: dict[str, int]) -> BatchLayout:
    """The layout of a batch whose rows are in this order of requests.

    Raises:
        KeyError: a request that the step doesn't have, or whose prompt was never seen.
        ValueError: not all of the step's requests are in the order.
    """
    if len(order) != len(step.num_tokens):
        raise ValueError(f"the batch has {len(order)} requests, the scheduler said {len(step.num_tokens)}")
    return BatchLayout(
        request_ids=order,
        num_tokens=np.array([step.num_tokens[request_id] for request_id in order], np.int64),
        first_positions=np.array([step.first_positions[request_id] for request_id in order], np.int64),
        prompt_tokens=np.array([prompts[request_id] for request_id in order], np.int64),
    )
