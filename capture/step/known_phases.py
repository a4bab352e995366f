"""The phases of steps, for as long as they can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moescope.capture.seam.requests import scheduled_tokens
from moescope.capture.step.batch import BatchRequests
from moescope.capture.step.phases import PhaseTracker, UInt8Array
from moescope.capture.step.totals import StepTokens


class KnownPhases:
    """A `PhaseTracker` whose faults cost the phases, for good, and never the counts.

    Args:
        tracker: knows the phases.
        lost: called with the reason when they can't be told any more.

    Attributes:
        steady: what `begin_step` would return for the next step, and note nothing, if that has as many tokens
            and no request comes, goes or goes on after a preemption; None: it must be asked.
    """

    def __init__(self, tracker: PhaseTracker, lost: Callable[[str], None]) -> None:
        self._tracker: PhaseTracker | None = tracker
        self._on_loss = lost
        self.steady: StepTokens | None = None

    def begin_step(self, scheduler_output: Any) -> StepTokens:
        """The tokens of the step about to run; all are of one phase once phases can't be told."""
        if self._tracker is not None:
            try:
                step = self._tracker.begin_step(scheduler_output)
                self.steady = step if self._tracker.all_decode else None
                return step
            except Exception as error:  # noqa: BLE001 - counts don't need them
                self.give_up(f"the requests of a step can't be read: {error!r}")
        return StepTokens(scheduled_tokens(scheduler_output), 0)

    def tell(self, batch: BatchRequests, take: Callable[[UInt8Array], None]) -> None:
        """Give `take` the phases of the step that began last (see `PhaseTracker.of_tokens`)."""
        if self._tracker is None:
            return
        try:
            take(self._tracker.of_tokens(batch))
        except Exception as error:  # noqa: BLE001 - counts don't need them
            self.give_up(f"the phases of a step can't be told: {error!r}")

    def give_up(self, reason: str) -> None:
        """From now on phases can't be told."""
        self._tracker = self.steady = None
        self._on_loss(reason)
