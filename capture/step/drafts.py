"""Draft tokens of speculative decoding, by what became of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from moescope.capture.seam.outcomes import NO_END, RequestEnd, StepOutcome

MAX_WAITING: Final = 1 << 14
"""Steps whose outcome nobody has read yet, at most: minutes of them."""


class Drafts(NamedTuple):
    """Draft tokens that the target model computed: those that it accepted, and those computed in vain."""

    accepted: int = 0
    rejected: int = 0


@dataclass(slots=True)
class _Live:
    """A request that is not done: tokens of its prompt, and all tokens so far."""

    prompt: int
    length: int
    end: RequestEnd = NO_END
    complete: bool = False


class DraftTally:
    """Counts accepted and rejected draft tokens of this DP rank.

    The step's path makes an outcome for each step and tells it what was sampled; another thread reads the
    outcomes that have arrived, in order. They share a deque, and all else belongs to one of the two.

    A request may end within the drafts of a step: what was accepted behind its last token is in no output,
    and counts as rejected, as does a step that vLLM had begun for the request before it knew of the end. So
    tokens less rejected ones are those that the same requests need without drafts.

    Args:
        failed: called once, with the reason, when what becomes of drafts can't be told any more.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed: Callable[[str], None] | None = failed
        self._waiting: deque[StepOutcome] = deque()
        self._live: dict[str, _Live] = {}
        self._accepted = self._rejected = 0
        self._step: StepOutcome | None = None

    def begin_step(self, scheduler_output: Any) -> StepOutcome:
        """A step is about to be enqueued; returns what will tell its outcome."""
        self._forsake()
        self._step = outcome = StepOutcome(scheduler_output)
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
            self._note_requests(outcome)
            sampled = outcome.read()
            if sampled is not None:
                for name, tokens in sampled.by_request().items():
                    self._verify(self._live.get(name) or _Live(0, 0), tokens, outcome.drafts.get(name, 0))
            elif outcome.drafts:
                self._fail("a step was not sampled")
        return Drafts(self._accepted, self._rejected)

    def _note_requests(self, outcome: StepOutcome) -> None:
        for name in outcome.finished:
            self._live.pop(name, None)
        for start in outcome.starts:
            self._live[start.request_id] = _Live(start.prompt, start.length, start.end)
        for name, generated in outcome.resumed.items():
            live = self._live.get(name)
            if live is not None:
                live.length = live.prompt + generated

    def _verify(self, live: _Live, sampled: Sequence[int], drafts: int) -> None:
        """Add a request's drafts in a step: of d drafts, s - 1 are accepted where s tokens were sampled."""
        if live.complete:
            self._rejected += 1 + drafts
        elif sampled:
            accepted = min(len(sampled) - 1, drafts)
            last = live.end.last_of(sampled, live.length)
            if last is not None:
                live.complete, accepted = True, min(accepted, last)
            live.length += len(sampled)
            self._accepted += accepted
            self._rejected += drafts - accepted

    def _forsake(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.lose()

    def _fail(self, reason: str) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(f"which drafts were accepted isn't known: {reason}")
