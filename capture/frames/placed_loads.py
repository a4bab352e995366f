"""Where the experts are while vLLM serves, and with that which EP ranks a worker's slots go to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.frames.open_ring import no_ep_ranks, open_ring
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.frames.unavailable import Unavailable
from moescope.capture.seam.eplb import MovingPlacement, watch_eplb
from moescope.capture.seam.survey import MoeSurvey
from moescope.capture.wire import MoeLayer, Producer


class PlacedLoads:
    """The placement of one worker's experts and its loads by EP rank, for as long as they can be told.

    What can't be told is noted as unavailable; counts don't need it. The thread that enqueues the steps makes
    all calls.

    Args:
        survey, producer, vllm_config, device, unavailable, microbatches: see `open_ring`.
        model_runner: see `EplbWatch`.

    Attributes:
        eplb: follows EPLB, where it moves experts; or None.
        ring: slots by EP rank are counted with it; or None.
        history: of the loads of single steps; None where they aren't told.
        follows: whether `step_begins` has anything to do: vLLM may move experts.
    """

    def __init__(
        self,
        survey: MoeSurvey,
        producer: Producer,
        vllm_config: Any,
        device: torch.device,
        unavailable: Unavailable,
        model_runner: Any,
        microbatches: int = 1,
    ) -> None:
        if survey.why_no_placement is not None:
            unavailable.note("placement", survey.why_no_placement)
        modules = [layer.module for layer in survey.routed]
        self._unavailable, self._ep_size = unavailable, producer.ep_size
        self.eplb = watch_eplb(model_runner, modules, vllm_config, partial(unavailable.note, "placement"))
        self.ring = open_ring(survey, producer, vllm_config, device, unavailable, self.eplb, microbatches)
        self.history = None if self.ring_of_steps is None else StepHistory(self.ring_of_steps.version)
        self._maps = None if self.ring is None else self.ring.maps
        self.follows = self.eplb is not None or self._maps is not None

    @property
    def ring_of_steps(self) -> LoadRing | None:
        """The ring, if it has the loads of single steps."""
        return None if self.ring is None or not self.ring.capacity else self.ring

    def moving(self, layers: Sequence[MoeLayer]) -> MovingPlacement | None:
        """What tells the placement of the covered layers where EPLB moves experts."""
        return None if self.eplb is None else MovingPlacement(layers, self.eplb.rows, self._ep_size)

    def step_begins(self) -> None:
        """A step is about to be enqueued."""
        if self.eplb is not None:
            self.eplb.look()
        if self._maps is None:
            return
        try:
            self._maps.follow()
        except Exception as error:  # noqa: BLE001 - counts don't need them
            self._maps = None
            no_ep_ranks(self._unavailable, f"EPLB's maps of experts were replaced: {error!r}")

    def idle_step(self) -> None:
        """A dummy step was run, which EPLB counts as well."""
        if self.eplb is not None:
            self.eplb.look()

    def move_after_this_pass(self) -> bool:
        """See `EplbWatch.moves_after_this_pass`."""
        return self.eplb is not None and self.eplb.moves_after_this_pass()

    def resized(self, ep_size: int) -> None:
        """There are so many EP ranks from now on."""
        if self.ring is not None and self.ring.ep_size != ep_size:
            no_ep_ranks(self._unavailable, f"there are {ep_size} EP ranks, not {self.ring.ep_size}")
