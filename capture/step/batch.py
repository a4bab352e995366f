"""Which requests' rows a step's batch has, in which order: known before the step's forward pass is enqueued.

Routing callbacks can't tell: none runs when a CUDA graph is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moescope.capture.seam.requests import BatchOrder
from moescope.capture.threads.throttled_log import ThrottledLog
from moescope.capture.wire import Int64Array

logger = logging.getLogger("vllm.moescope")


class BatchRequests(NamedTuple):
    """The requests of a step in the order of the batch's rows; each has consecutive rows, from row 0 on.

    Attributes:
        request_ids: of the n requests.
        num_tokens: int64 [n], rows of each; their sum is the step's number of tokens, drafts included.
    """

    request_ids: Sequence[str]
    num_tokens: Int64Array


class BatchWatch:
    """Tells the requests of each step in the order of its batch's rows, once vLLM's runner knows it.

    A runner that can't be read ends the watch for good, with one line in the log; counting goes on. An order
    that doesn't fit its step costs that step only: it isn't told.

    Args:
        ordered: called within `step_begins` (runner V2) or while vLLM prepares the step's inputs (V1), from
            the thread that enqueues the steps; never for a step whose order can't be told.
        failed: called once, with the reason, when the watch ends; within the constructor if this vLLM can't
            be read at all.

    Attributes:
        reason: why the watch has ended, or None.
    """

    def __init__(
        self, vllm_config: Any, ordered: Callable[[BatchRequests], None], failed: Callable[[str], None]
    ) -> None:
        self._on_order = ordered
        self._on_failure = failed
        self.reason: str | None = None
        self._num_tokens: Mapping[str, int] | None = None
        self._log = ThrottledLog(logger)
        self._order: BatchOrder | None = None
        try:
            self._order = BatchOrder(vllm_config, self._ordered, self._fail)
        except Exception as error:  # noqa: BLE001 - counts don't need it
            self._fail(error)

    def step_begins(self, scheduler_output: Any, model_runner: Any) -> None:
        """A step is about to run; one without tokens has no order."""
        if self._order is None or self.reason is not None:
            return
        try:
            self._num_tokens = scheduler_output.num_scheduled_tokens or None
            if self._num_tokens is not None:
                self._order.step_begins(scheduler_output, model_runner)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fail(error)

    def step_ends(self) -> None:
        """The step is enqueued: nothing more is told of it."""
        self._num_tokens = None

    def close(self) -> None:
        """Leave the runner as it was."""
        self._num_tokens = None
        if self._order is not None:
            self._order.close()

    def _ordered(self, order: Sequence[str]) -> None:
        num_tokens, self._num_tokens = self._num_tokens, None
        if num_tokens is None:  # outside of a step, or told already
            return
        try:
            requests = order_requests(order, num_tokens)
        except ValueError as error:
            self._log.log("order", logging.WARNING, f"moescope: a step's rows are not known: {error}")
            return
        self._on_order(requests)

    def _fail(self, error: Exception) -> None:
        if self.reason is not None:
            return
        what = str(error) if isinstance(error, LookupError) else repr(error)
        self.reason, self._num_tokens = f"the order of a batch's rows is not known: {what}", None
        self._on_failure(self.reason)


def order_requests(order: Sequence[str], num_tokens: Mapping[str, int]) -> BatchRequests:
    """The requests of a batch whose rows are in this order; `num_tokens`: the step's, by request.

    Raises:
        ValueError: the order and the step have different requests.
    """
    if len(order) != len(num_tokens):
        raise ValueError(f"the batch has {len(order)} requests, the scheduler said {len(num_tokens)}")
    try:
        counts = [num_tokens[request_id] for request_id in order]
    except KeyError as error:
        raise ValueError(f"the batch has request {error}, which is not in the step") from None
    return BatchRequests(order, np.array(counts, np.int64))
