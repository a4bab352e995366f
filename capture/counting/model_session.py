"""The loaded model of one worker under capture: what routes in it, and its weights. vLLM may change both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.survey import MoeSurvey
from moescope.capture.seam.weights import WeightsWatch

logger = logging.getLogger("vllm.moescope")


class ModelSession:
    """Keeps a capturer bound to a model while vLLM makes kernels anew, and counts the changes of its weights.

    The thread that enqueues the steps makes all calls.

    Args:
        model: the loaded model.
        survey: of that model.
        capturer: gets the ids of every routing call; it is turned off once a covered layer can't be counted.
        model_config: see `WeightsWatch`.
        device: where the model is.
        changed: called after each change of the weights.

    Attributes:
        weights: tells which weights the model has.
        looks_left: see `RouterBinding.looks_left`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        survey: MoeSurvey,
        capturer: RoutingCapturer,
        model_config: Any,
        device: torch.device,
        changed: Callable[[], None],
    ) -> None:
        self._capturer = capturer
        self._binding = RouterBinding(survey.routed, capturer, survey.look_again)
        self.looks_left = self._binding.looks_left
        self._why_no_references = survey.why_no_references
        self._on_change = changed
        self.weights = WeightsWatch(
            model,
            model_config,
            self._weights_changed,
            lambda: capturer.totals.forward_passes,
            discards=device.type != "cpu",
        )

    def bind(self) -> None:
        """Put the callbacks into the layers' slots; also into those that somebody else has taken."""
        self._binding.bind()
        reason = self._why_no_references()
        if reason is not None:
            self._capturer.keep_no_references(reason)

    def rebind(self) -> None:
        """Bind again: slots may have been taken, and kernels made anew."""
        if self._capturer.disabled_reason is not None:
            return
        lost = self._binding.renew()
        if lost is None:
            self.bind()
        else:
            self._binding.unbind()
            self._capturer.disable(lost)

    def step_begins(self) -> None:
        """A step, or a dummy one, is about to run: bind again if vLLM may have made kernels anew before it.

        Only here, as the last call that changes weights isn't known: in the midst of them a layer may have no
        kernel. What vLLM didn't tell is seen by looking at one layer in each step.
        """
        weights = self.weights
        if weights.touched or weights.awaits_step or self.looks_left():
            self.renew()

    def renew(self) -> None:
        """What `step_begins` does if something may have changed."""
        weights = self.weights
        weights.touched = False
        self.rebind()
        if weights.awaits_step:
            weights.step_begins()

    def close(self) -> None:
        """Leave the model as it was: no router calls the capturer any more."""
        try:
            self._binding.unbind()
        finally:
            self.weights.close()

    def _weights_changed(self) -> None:
        logger.info("moescope: the weights are changed, version %d %s", *self.weights.now)
        self._on_change()
