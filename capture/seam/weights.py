"""How vLLM changes the weights of a loaded model, each way, and how often that happened.

A change is one of these (looked up in vLLM 0.20 to 0.33):

- ``reload_weights`` of the worker, also by name over ``collective_rpc``;
- the first ``update_weights`` of a weight transfer (``start_weight_update`` ... ``finish_weight_update``), or
  each of them outside of one; chunks that follow belong to the same change;
- ``reset_weights``;
- ``load_weights`` of the model, which the worker extensions of RL trainers call: calls with no step in
  between are one change;
- a step on weights that ``sleep`` at level 2, or ``discard``, threw away and nothing has loaded again.

None is: a draft model's update, an adapter (LoRA), experts that EPLB or elastic EP move. What is copied into
parameters by hand isn't seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from moescope.capture.wire import Int64Array

WAYS: Final = (
    "reload_weights",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
    "reset_weights",
    "sleep",
    "discard",
)
"""Methods of vLLM's worker after which the weights may be others."""
MAX_LABEL: Final = 1024
REMEMBERED: Final = 4096
"""Changes of which it is known from which step on they count."""


class Weights(NamedTuple):
    """Which weights a worker has: see `Frame.weights_version` and `Frame.weights_label`."""

    version: int = 0
    label: str = ""


NO_CHANGE: Final = Weights()


class WeightsWatch:
    """Counts the changes of one model's weights. vLLM's calls come one at a time, never within a step.

    Args:
        model: the loaded model.
        model_config: vLLM's, whose ``model`` names the weights that were loaded.
        changed: called after each change, once `now` tells it.
        passes: tells the number of the next step, as in `StepLoads`.
        discards: whether sleep at level 2 throws the weights away; it does nothing on CPUs.

    Attributes:
        now: the weights in use; any thread may read it.
        touched: whether vLLM was called since this was last set to False, in any way that may have made
            kernels anew: also with a chunk of a change already told, and with what only ends a transfer.
        awaits_step: whether `step_begins` has anything to do.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        model_config: Any,
        changed: Callable[[], None],
        passes: Callable[[], int],
        *,
        discards: bool = True,
    ) -> None:
        self.now = Weights()
        self.touched = False
        self._passes = passes
        self._since = deque([(0, 0)], REMEMBERED)  # the first step of each version
        self._model_config = model_config
        self._first_name = getattr(model_config, "model", None)
        self._changed = changed
        self._discards = discards
        self._within = 0
        self._transfer: str | None = None  # the call that began the transfer under way
        self._transferred = False
        self._lost = self._loading = self.awaits_step = False
        self._model, self._load = model, getattr(model, "load_weights", None)
        if callable(self._load):
            model.__dict__["load_weights"] = self._load_weights

    def close(self) -> None:
        """Leave the model's ``load_weights`` as it was."""
        if self._model.__dict__.get("load_weights") == self._load_weights:
            del self._model.__dict__["load_weights"]

    def step_begins(self) -> None:
        """A step, or a dummy one, is about to run: what is loaded from now on is another change."""
        self._loading = self.awaits_step = False
        if self._lost:
            self._change("")

    def versions(self, steps: Int64Array) -> Int64Array:
        """The version that was in use in each of these steps, int64 [n] by their numbers; any thread."""
        since = np.array(list(self._since), np.int64)
        found = np.searchsorted(since[:, 0], steps, side="right") - 1
        versions: Int64Array = since[np.maximum(found, 0), 1]
        return versions

    def before(self) -> None:
        """One of `WAYS` is about to be called."""
        self._within += 1

    def after(self, way: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """It has returned or failed: one that failed may have changed the weights as well.

        Args:
            way: the method's name.
            arguments, named: what it was called with.
        """
        self._within -= 1
        self.touched = True
        first = arguments[0] if arguments else None
        if way in ("start_weight_update", "start_draft_weight_update"):
            self._transfer, self._transferred = way, False
        elif way == "finish_weight_update":
            self._transfer = None
        elif way == "update_weights":
            is_draft = self._transfer == "start_draft_weight_update"
            if not is_draft and not (self._transfer and self._transferred):
                self._transferred = True
                self._change("")
        elif way == "reload_weights":
            self._change(self._label(arguments, named))
        elif way == "reset_weights":
            self._change("")
        elif way == "sleep":
            self._lose(named.get("level", 1 if first is None else first) == 2)
        elif way == "discard":
            self._lose("weights" in (named.get("tags", first) or ()))

    def _label(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
        """What vLLM was told that the weights of a reload are: a path or a name; empty: nothing."""
        given = dict(zip(("weights_iterator", "weights_path"), arguments, strict=False)) | dict(named)
        if given.get("weights_iterator") is not None:
            return ""
        told = given.get("weights_path") or getattr(self._model_config, "model", None)
        return "" if told is None or told == self._first_name else str(told)

    def _lose(self, lost: bool) -> None:
        if lost and self._discards:
            self._lost = self.awaits_step = True

    def _load_weights(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own ``load_weights``."""
        self._within += 1
        try:
            assert self._load is not None
            return self._load(*args, **kwargs)
        finally:
            self._within -= 1
            self.touched = True
            if not (self._within or self._transfer or self._loading):
                self._change("")
                self._loading = self.awaits_step = True

    def _change(self, label: str) -> None:
        self._lost = self._loading = self.awaits_step = False
        self.now = Weights(self.now.version + 1, label[:MAX_LABEL])
        self._since.append((self._passes(), self.now.version))
        self._changed()
