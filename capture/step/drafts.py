"""Draft tokens of speculative decoding, by what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.capture.seam.outcomes import Sampled, StepOutcome, draft_counts

MAX_WAITING: Final = 1 << 14
"""Steps whose outcome nobody has read yet, at most: minutes of them."""


class Drafts(NamedTuple):
    """Draft tokens that the target model computed: those it accepted, and those it rejected."""

    accepted: int = 0
    rejected: int = 0


class DraftTally:
    """Counts accepted and rejected draft tokens of this DP rank.

    The step's path makes an outcome for each step and tells it what was sampled; another thread reads the
    outcomes that have arrived, in order. They share a deque.

    A draft of a step that sampled nothing for its request is neither: a prompt's chunk has none, and vLLM
    doesn't count those either. Drafts that vLLM accepted and then cut, since the request ended before them,
    are accepted here as they are in vLLM's own metrics.

    Args:
        failed: called once, with the reason, when what becomes of drafts can't be told any more.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed: Callable[[str], None] | None = failed
        self._waiting: deque[StepOutcome] = deque()
        self._drafts = Drafts()
        self._step: StepOutcome | None = None

    def begin_step(self, scheduler_output: Any) -> StepOutcome:
        """A step is about to be enqueued; returns what will tell its outcome."""
        self._forsake()
        self._step = outcome = StepOutcome(draft_counts(scheduler_output))
        if outcome.drafts:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(outcome)
            else:
                self._fail("outcomes of steps were not read in time")
        return outcome

    def sampled(self, output: Any) -> None:
        """The step that began last was sampled; `output` is what vLLM's runner returned."""
        step, self._step = self._step, None
        if step is None:
            return
        try:
            step.tell(output)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fail(str(error) if isinstance(error, LookupError) else repr(error))

    def close(self) -> None:
        """No step follows."""
        self._forsake()

    def read(self) -> Drafts:
        """Take in the outcomes that have arrived; returns the drafts so far. For one thread."""
        while self._waiting and self._waiting[0].settled:
            outcome = self._waiting.popleft()
            sampled = outcome.read()
            if sampled is None:
                if outcome.drafts:
                    self._fail("a step was not sampled")
                continue
            new = verified(outcome, sampled)
            self._drafts = Drafts(self._drafts.accepted + new.accepted, self._drafts.rejected + new.rejected)
        return self._drafts

    def _forsake(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.lose()

    def _fail(self, reason: str) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(f"which drafts were accepted isn't known: {reason}")


def verified(outcome: StepOutcome, sampled: Sampled) -> Drafts:
    """A step's drafts: of d drafts, s - 1 are accepted where s tokens were sampled."""
    drafts = np.array([outcome.drafts.get(name, 0) for name in sampled.request_ids], np.int64)
    told = (drafts > 0) & (sampled.counts > 0)
    accepted = np.minimum(sampled.counts[told] - 1, drafts[told])
    return Drafts(int(accepted.sum()), int((drafts[told] - accepted).sum()))
