"""What steps with traced requests sample, where no tokens are drafted: it tells how these requests end."""

from __future__ import annotations

import logging
from typing import Any, Final

from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.threads.throttled_log import ThrottledLog
from moescope.capture.tracing.assembly import TraceAssembly

logger = logging.getLogger("vllm.moescope")

MAX_WAITING: Final = 512
"""Steps whose rows are on their way, at most, of which vLLM's sampled tokens are kept. A step of 512 requests
keeps 8 KiB, and pinned memory of twice that size at most: 12 MiB together."""


class Witness:
    """Keeps what a step samples until its traced rows are on the host. The step's path alone calls it.

    Tokens that vLLM has copied to the host anyway are kept, and no step waits for them. Where too many steps
    wait, or the runner returns something unknown, the rows stay, and how their requests end isn't known.

    Args:
        assembly: where the rows of steps wait.

    Attributes:
        outcome: of the step that began last; None: it isn't looked at.
    """

    def __init__(self, assembly: TraceAssembly) -> None:
        self.outcome: StepOutcome | None = None
        self._assembly = assembly
        self._log = ThrottledLog(logger)

    def begin_step(self, scheduler_output: Any) -> None:
        """A step with traced requests is about to be enqueued."""
        if len(self._assembly.events) < MAX_WAITING:
            self.outcome = StepOutcome(scheduler_output)

    def sampled(self, output: Any) -> None:
        """The step was sampled; `output` is what vLLM's runner returned."""
        outcome, self.outcome = self.outcome, None
        if outcome is None:
            return
        try:
            outcome.tell(output)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._log.log(
                "outcome", logging.WARNING, f"moescope: how traced requests end isn't known: {error}"
            )

    def forsake(self) -> None:
        """Nothing more is told of the step that began last."""
        outcome, self.outcome = self.outcome, None
        if outcome is not None:
            outcome.lose()
