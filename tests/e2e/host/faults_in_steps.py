"""What can go wrong in a step: capture ends for good and says so, in the log and in its frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import torch

from moescope.capture import session
from moescope.capture.counting import capturer, strategies
from moescope.capture.frames import taker
from moescope.capture.seam import requests
from moescope.capture.step import phases
from moescope.capture.tracing import tracer
from tests.e2e.host.injecting import (
    Case,
    Environment,
    raising,
    with_setting,
)


@contextlib.contextmanager
def stolen_slot() -> Iterator[Environment]:
    """Somebody takes a router's only callback slot while requests are served."""
    original = session.CaptureSession.serving_begins

    def serving_begins(mine: session.CaptureSession) -> None:
        original(mine)
        mine._model._binding._routers[1].set_capture_fn(None)

    with mock.patch.object(session.CaptureSession, "serving_begins", serving_begins):
        yield {}


@contextlib.contextmanager
def odd_ids() -> Iterator[Environment]:
    """Routing calls bring ids of one dimension."""
    original = capturer.RoutingCapturer.record

    def record(mine: capturer.RoutingCapturer, ordinal: int, ids: torch.Tensor) -> None:
        original(mine, ordinal, ids[:, 0])

    with mock.patch.object(capturer.RoutingCapturer, "record", record):
        yield {}


@contextlib.contextmanager
def unknown_layout(**variables: str) -> Iterator[Environment]:
    """The rows of a step are as no vLLM has them."""
    error = AssertionError("rows fit no known layout")
    with raising(capturer, "rows_of_call", error, after=9)():
        yield variables


@contextlib.contextmanager
def context_fails() -> Iterator[Environment]:
    """What vLLM says of a step can't be read."""
    original, calls = session.rows_reader, 0

    def rows_reader(microbatches: int) -> Callable[[], Any]:
        read = original(microbatches)

        def step_rows() -> Any:
            nonlocal calls
            calls += 1
            if calls > 9:
                raise LookupError("no context")
            return read()

        return step_rows

    with mock.patch.object(session, "rows_reader", rows_reader):
        yield {}


IN_STEPS: Final[dict[str, Case]] = {
    "callback raises": Case(
        inject=raising(strategies, "count_rows", after=9),
        shows="off for good.*counting failed in layer",
        state="disabled",
    ),
    "no memory in a callback": Case(
        inject=raising(strategies, "count_rows", torch.OutOfMemoryError("no memory"), after=5),
        shows="off for good.*no memory",
        state="disabled",
    ),
    "unknown layout, disable": Case(
        inject=lambda: unknown_layout(MOESCOPE_ON_ERROR="disable"),
        shows="off for good.*rows fit no known layout",
        state="disabled",
    ),
    "unknown layout in traffic, by default": Case(
        inject=lambda: unknown_layout(), shows="off for good.*rows fit no known layout", state="disabled"
    ),
    "forward context fails": Case(
        inject=lambda: context_fails(), shows="off for good.*no context", state="disabled"
    ),
    "ids of another shape": Case(
        inject=odd_ids, shows=r"off for good.*must be \[n, top_k\]", state="disabled"
    ),
    "step can't begin": Case(
        inject=raising(capturer.RoutingCapturer, "begin_step_of", after=3),
        shows="off for good.*begin_step_of is broken",
        state="disabled",
    ),
    "step can't end": Case(
        inject=raising(capturer.RoutingCapturer, "end_step", after=3),
        shows="off for good.*end_step is broken",
        state="disabled",
    ),
    "scheduler's output of another shape": Case(
        inject=raising(phases, "scheduled_tokens", AttributeError("total_num_scheduled_tokens"), after=3),
        shows=r"not available: phases \(.*total_num_scheduled_tokens",
        state="counting",
        exact=True,
    ),
    "snapshot has no memory": Case(
        inject=raising(taker.SnapshotTaker, "_enqueue", MemoryError(), after=2), shows="MemoryError"
    ),
    "slot stolen": Case(inject=stolen_slot, state="counting", unseen=True),
    "tracing fails": Case(
        inject=lambda: with_setting(raising(tracer.Tracer, "begin_step", after=3), MOESCOPE_TRACE_RATE="1"),
        shows=r"not available: traces \(.*begin_step is broken",
        state="counting",
        exact=True,
    ),
    "batch can't be read": Case(
        inject=lambda: with_setting(raising(requests, "batch_order", after=3), MOESCOPE_TRACE_RATE="1"),
        shows=r"not available: phases \(.*batch_order is broken",
        state="counting",
        exact=True,
    ),
}
