"""The methods of vLLM's worker that change weights, surrounded so that the capturer hears of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from moescope.capture.seam.weights import WAYS


def watched_ways(worker_class: type[Any]) -> dict[str, Callable[..., Any]]:
    """Those of `WAYS` that a worker class has, by name, each made to tell ``_capture`` of its calls.

    No name is added to the class: one that it lacks may be that of a trainer's worker extension, and vLLM
    forbids that both have it.
    """
    return {name: _watched(worker_class, name) for name in WAYS if hasattr(worker_class, name)}


def _watched(worker_class: type[Any], name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(worker_class, name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        method, capture = getattr(worker_class, name), self.__dict__.get("_capture")
        if capture is None:
            return method(self, *args, **kwargs)
        with capture.weights_may_change(name, args, kwargs):
            return method(self, *args, **kwargs)

    return call
