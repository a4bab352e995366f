"""Draft tokens of speculative decoding, by what became of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from moescope.capture.seam.ends import NO_LIMITS, ReadLimits, limits_of
from moescope.capture.seam.outcomes import StepOutcome, why_no_outcomes
from moescope.capture.step.live_requests import Drafts, LiveRequests
from moescope.capture.threads.pause_gate import PauseGate

MAX_WAITING_BYTES: Final = 64 << 20
"""Host memory of steps whose outcome nobody has read yet. A step of 512 requests with 3 drafts each takes
0.1 MiB, so this is 650 of such steps: the sender's thread hangs in a connection for seconds now and then."""
BREATH: Final = (0.0001, 0.002)
"""Seconds between two steps' outcomes, at least and at most, for the step's thread."""
_SHARE: Final = 8
"""How many times as long as reading a step such a pause takes, within these bounds."""


class _LetGo:
    """What is kept of a step whose outcome found no room: requests that come and go, and how many drafts."""

    def __init__(self, outcome: StepOutcome) -> None:
        self.finished, self.starts, self.resumed = outcome.finished, outcome.starts, outcome.resumed
        self.drafts = outcome.num_drafts
        self.nbytes = 1024 + 512 * (len(self.finished) + len(self.starts))
        self.settled = True


class DraftTally:
    """Counts accepted and rejected draft tokens of this DP rank.

    The step's path makes an outcome for each step and tells it what was sampled; another thread reads the
    outcomes that have arrived, in order. They share a deque, and all else belongs to one of the two.

    A request may end within the drafts of a step: what was accepted behind its last token is in no output,
    and counts as rejected, as does a step that vLLM had begun for the request before it knew of the end. So
    tokens less rejected ones are those that the same requests need without drafts.

    Outcomes that are not read in time are let go. Their drafts are lost, and so are those that their requests
    verify later: where these end isn't known any more. Later requests are counted again.

    Args:
        failed: called once, with the reason, when what becomes of drafts can't be told any more.
        limits: tells the limits of the server's requests.
    """

    def __init__(self, failed: Callable[[str], None], limits: ReadLimits = lambda: NO_LIMITS) -> None:
        self._limits = limits
        self._failed: Callable[[str], None] | None = failed
        self._waiting: deque[StepOutcome | _LetGo] = deque()
        self._live = LiveRequests()
        self._so_far = Drafts()
        self._step: StepOutcome | None = None
        self._ended = False
        self._told_bytes = self._read_bytes = 0  # the one is the step's path's, the other the reader's
        self._gate = PauseGate()

    @property
    def so_far(self) -> Drafts:
        """The drafts of the outcomes that were read; for any thread."""
        return self._so_far

    def begin_step(self, scheduler_output: Any) -> StepOutcome:
        """A step is about to be enqueued; returns what will tell its outcome, or that it is lost."""
        self._forsake()
        outcome = StepOutcome(scheduler_output, self._limits())
        waiting = self._told_bytes - self._read_bytes
        if self._ended:
            outcome.lose()
        elif waiting < MAX_WAITING_BYTES:
            self._step = outcome
            self._waiting.append(outcome)
        elif waiting < 2 * MAX_WAITING_BYTES:
            outcome.lose()
            let_go = _LetGo(outcome)
            self._told_bytes += let_go.nbytes
            self._waiting.append(let_go)
        else:
            outcome.lose()
            self._ended = True
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
        self._told_bytes += step.nbytes

    def close(self) -> None:
        """No step follows."""
        self._forsake()

    def pause(self) -> None:
        """Leave the device alone until `resume`; waits for the step that is read."""
        self._gate.pause()

    def resume(self) -> None:
        """Go on after `pause`; nothing to do without one."""
        self._gate.resume()

    def read(self, breathe: Callable[[float], None] = time.sleep) -> Drafts:
        """Take in the outcomes that have arrived; returns the drafts so far. For one thread.

        Reading a step of 512 requests takes the interpreter for 0.1 to 0.2 ms. `breathe` waits between two
        steps, so that the step's thread is held up no longer than that, and not in each of its calls.
        """
        began = time.perf_counter()
        while self._read_one() and self._waiting:
            took = time.perf_counter() - began
            breathe(min(max(BREATH[0], _SHARE * took), BREATH[1]))
            began = time.perf_counter()
        return self._so_far

    def _read_one(self) -> bool:
        """Take in the next outcome; returns whether it has arrived. Nothing while paused."""
        if not self._gate.enter():
            return False
        try:
            if not self._waiting or not self._waiting[0].settled:
                return False
            step = self._waiting.popleft()
            self._take(step)
            self._read_bytes += step.nbytes
            return True
        finally:
            self._gate.leave()

    def _take(self, step: StepOutcome | _LetGo) -> None:
        self._live.note(step.finished, step.starts, step.resumed)
        if isinstance(step, _LetGo):
            self._live.doubt()
            self._add(Drafts(lost=step.drafts))
            return
        sampled = step.read()
        if sampled is not None:
            self._add(self._live.judge(sampled, step.drafts_of(sampled.request_ids)))
        elif step.num_drafts:
            self._fail("a step was not sampled")

    def _add(self, more: Drafts) -> None:
        before = self._so_far
        self._so_far = Drafts(
            before.accepted + more.accepted, before.rejected + more.rejected, before.lost + more.lost
        )

    def _forsake(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.lose()
            self._told_bytes += step.nbytes

    def _fail(self, reason: str) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(f"which drafts were accepted isn't known: {reason}")


def open_tally(vllm_config: Any, failed: Callable[[str], None]) -> DraftTally | None:
    """A tally if vLLM drafts tokens and this worker is told what becomes of them; else None.

    Args:
        failed: see `DraftTally`; also called if vLLM drafts tokens and there is no tally.
    """
    if vllm_config.speculative_config is None:
        return None
    reason = why_no_outcomes(vllm_config)
    if reason is not None:
        failed(reason)
        return None
    return DraftTally(failed, limits_of(vllm_config))
