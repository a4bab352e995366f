"""Taking, re-taking and giving back the routers' single callback slot."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final, Protocol

import torch

from moescope.capture.seam.coverage import CaptureFn, RoutedLayer, what_routes
from moescope.capture.seam.slots import holder_of, weakly

_KERNEL_AND_ROUTER: Final = attrgetter("routed_experts.quant_method.moe_kernel.impl.fused_experts", "router")
"""All that `what_routes` depends on, since a kernel is of one kind, in one call. Older vLLMs don't have it;
modules that route by themselves don't either."""

Look = Callable[[RoutedLayer], RoutedLayer | str]
"""Looks at a covered layer anew: the layer with the slot that it has now, or why it can't be counted."""


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

    vLLM makes kernels anew when weights are loaded again, and the slot may be another then: `renew` finds it.
    Its layer's buffer stays in memory (`SinkBuffers`): CUDA graphs that were captured go on writing there.

    Args:
        routed: the covered layers.
        recorder: gets the ids.
        look: looks at a layer again; None: layers stay as they are.
    """

    def __init__(self, routed: tuple[RoutedLayer, ...], recorder: Recorder, look: Look | None = None) -> None:
        self._recorder = recorder
        self._look = look
        self._layers = list(routed)
        self._routers: list[Any] = [layer.router for layer in routed]
        self._callbacks: list[LayerCallback | None] = [None] * len(routed)
        self._seen = [_Seen(layer.module) for layer in routed]
        self._at = _in_a_ring(self._seen)

    def looks_left(self) -> bool:
        """Whether another object routes in the next one of the layers, in turn, than `renew` found there.

        Each call looks at one layer. vLLM mostly makes all kernels anew at once; one that is alone is seen
        within as many calls as there are layers. This is on the path of each step: torch looks for the
        submodules of a module in a function of its own, so they are taken from where it finds them.
        """
        seen = self._at
        if seen is None:
            return False
        self._at, module = seen.after, seen.module
        try:
            experts = module._modules["routed_experts"]
            method = experts._modules.get("quant_method") or experts.quant_method
            kernel, router = method.moe_kernel.impl.fused_experts, module.router
        except (AttributeError, KeyError):
            return seen.is_another()
        return (kernel is not seen.kernel() or router is not seen.router()) and seen.is_another()

    def renew(self) -> str | None:
        """Find each layer's slot again; `bind` must follow. Not within a step.

        Returns:
            Why a layer can't be counted any more, or None. Its slot is given back, so that vLLM, which
            refuses a sink that a kernel can't write to, serves on.
        """
        lost: str | None = None
        for ordinal, layer in enumerate(self._layers):
            found = layer if self._look is None else self._look(layer)
            if isinstance(found, str) or found.spec != layer.spec:
                reason = found if isinstance(found, str) else f"it has {found.spec}, not {layer.spec}"
                lost = lost or f"layer {layer.spec.layer} can't be counted any more: {reason}"
                self._give_back(ordinal)
            elif holder_of(found.router) is not holder_of(self._routers[ordinal]):
                self._give_back(ordinal)
                self._routers[ordinal] = found.router
            self._seen[ordinal].note()
        return lost

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
        for ordinal in range(len(self._routers)):
            self._give_back(ordinal)

    def _give_back(self, ordinal: int) -> None:
        router, mine = self._routers[ordinal], self._callbacks[ordinal]
        if mine is None:
            return
        if router.capture_fn is mine:
            router.set_capture_fn(mine.earlier)
        mine.retire()
        self._callbacks[ordinal] = None


class _Seen:
    """What routed in a module when it was looked at.

    Attributes:
        module: vLLM's.
        kernel, router: give what `_KERNEL_AND_ROUTER` finds; None where it finds nothing.
        after: the layer that is looked at next.
    """

    __slots__ = ("_routes", "after", "kernel", "module", "router")

    def __init__(self, module: Any) -> None:
        self.module = module
        self.after = self
        self.note()

    def note(self) -> None:
        """What routes now is what was looked at."""
        self._routes = weakly(_what_routes(self.module))
        self.kernel, self.router = _in_short(self.module)

    def is_another(self) -> bool:
        """Whether another object routes now. If not, what `_KERNEL_AND_ROUTER` finds is noted anew."""
        if _what_routes(self.module) is not self._routes():
            return True
        self.kernel, self.router = _in_short(self.module)
        return False


def _in_a_ring(layers: list[_Seen]) -> _Seen | None:
    """The first of the layers; each one has the next, and the last one the first."""
    for layer, after in pairwise([*layers, *layers[:1]]):
        layer.after = after
    return layers[0] if layers else None


def _in_short(module: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    try:
        kernel, router = _KERNEL_AND_ROUTER(module)
    except AttributeError:
        kernel = router = None
    return weakly(kernel), weakly(router)


def _what_routes(module: Any) -> Any:
    """What routes in a module; None where that can't be told, as in one that has no kernel just then."""
    try:
        return what_routes(module)
    except Exception:  # noqa: BLE001 - `renew` says what is wrong with it
        return None
