"""Which of the worker's methods tell the capturer that weights change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from vllm.v1.worker.gpu_worker import Worker

from moescope.capture.attach.mixin import extended
from moescope.capture.seam.weights import WAYS


class Heard:
    """In place of a session."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @contextmanager
    def weights_may_change(self, way: str, arguments: Any, named: Any) -> Iterator[None]:
        try:
            yield
        finally:
            self.calls.append((way, arguments, named))


def worker_of(**methods: Any) -> Any:
    made: Any = extended(type("Worker", (), {"__module__": "vllm.v1.worker.gpu_worker", **methods}))()
    made._capture = Heard()
    return made


def test_vllms_worker_has_all_ways() -> None:
    found = extended(Worker)
    assert set(WAYS) <= set(vars(found))
    assert found.reload_weights.__doc__ == Worker.reload_weights.__doc__


def test_what_the_worker_lacks_is_left_to_extensions() -> None:
    """A trainer's extension brings its own `update_weights` to a vLLM without one; vLLM refuses two."""
    worker = worker_of(reload_weights=lambda _, path: path)
    assert not hasattr(worker, "update_weights")
    assert worker.reload_weights("here") == "here"
    assert worker._capture.calls == [("reload_weights", ("here",), {})]


def test_a_call_that_fails_is_told_and_raises() -> None:
    def fails(self: Any, *, level: int) -> None:
        raise RuntimeError(f"level {level}")

    worker = worker_of(sleep=fails)
    with pytest.raises(RuntimeError, match="level 2"):
        worker.sleep(level=2)
    assert worker._capture.calls == [("sleep", (), {"level": 2})]


def test_without_capture_the_worker_does_as_before() -> None:
    worker = worker_of(sleep=lambda _, level: level)
    worker._capture = None
    assert worker.sleep(1) == 1
    del worker._capture
    assert worker.sleep(2) == 2
