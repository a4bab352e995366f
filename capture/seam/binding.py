"""Taking, re-taking and giving back the routers' single callback slot."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from moescope.capture.seam.coverage import CaptureFn, RoutedLayer


class Recorder(Protocol):
    """What gets the ids of every routing call."""

    def record(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        """Take the logical expert ids, integer [n, top_k], of the layer at this ordinal."""


class LayerCallback:
    """The callback of one layer: calls the callback that the slot held before, if any, then records."""

    def __init__(self, ordinal: int, recorder: Recorder, earlier: CaptureFn | None) -> None:
        self.ordinal = ordinal
        self.recorder: Recorder | None = recorder
        self.earlier = earlier

    def __call__(self, topk_ids: torch.Tensor) -> None:
        """Take the logical expert ids, integer [n, top_k], of one routing call."""
        if self.earlier is not None:
            self.earlier(topk_ids)
        if self.recorder is not None:
            self.recorder.record(self.ordinal, topk_ids)

    def retire(self) -> None:
        """Record no more, but go on calling the earlier callback.

        Whoever took the slot may still call this callback: if it recorded, ids would count twice.
        """
        self.recorder = None


class RouterBinding:
    """The callbacks of one recorder in the slots of the covered layers' routers.

    A slot holds one callback, and vLLM's ``--enable-return-routed-experts`` takes the slot during KV-cache
    set-up, after the model was loaded. So `bind` is called again before warm-up: it takes the slot back, and
    chains the callback that it finds there.
    """

    def __init__(self, routed: tuple[RoutedLayer, ...], recorder: Recorder) -> None:
        self._recorder = recorder
        self._routers: list[Any] = [layer.router for layer in routed]
        self._callbacks: list[LayerCallback | None] = [None] * len(routed)

    def bind(self) -> int:
        """Put our callback into each slot that doesn't hold it, and return how many these were."""
        taken = 0
        for ordinal, router in enumerate(self._routers):
            mine = self._callbacks[ordinal]
            if mine is not None and router.capture_fn is mine:
                continue
            if mine is not None:
                mine.retire()
            callback = LayerCallback(ordinal, self._recorder, router.capture_fn)
            self._callbacks[ordinal] = callback
            router.set_capture_fn(callback)
            taken += 1
        return taken

    def unbind(self) -> None:
        """Give the slots back to the earlier callbacks; a slot that somebody else holds now is left alone."""
        for ordinal, router in enumerate(self._routers):
            mine = self._callbacks[ordinal]
            if mine is None:
                continue
            if router.capture_fn is mine:
                router.set_capture_fn(mine.earlier)
            mine.retire()
            self._callbacks[ordinal] = None
