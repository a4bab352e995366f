"""Faults to inject into capture, one at a time, each with what must show of it.

A fault is a context manager that breaks something of `capture/`, or of the world around it, and yields the
variables that the session is opened with. `shows` is a pattern of the one log line; `state` and `drops` are
what the last frame must say, where one can still come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from moescope.capture import session
from moescope.capture.attach import mixin
from moescope.capture.counting import capturer, reference, strategies
from moescope.capture.frames import builder, sender, taker
from moescope.capture.seam import identity, requests, survey, versions
from moescope.capture.step import phases
from moescope.capture.tracing import tracer
from tests.anew import executed_anew
from tests.e2e.host import endpoints

Environment = Mapping[str, str]
Fault = Callable[[], AbstractContextManager[Environment]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault.

    Attributes:
        inject: see above; runs around the opening of the session, the requests, and its close.
        shows: regular expression that a log line of capture must match; None: it shows in frames only.
        state: of the last frame that arrives, or None when none can.
        drops: counters of the last frame that must be above zero.
        exact: whether the last frame must hold all tokens of the run.
        unseen: whether a layer must have fewer rows than tokens.
    """

    inject: Fault
    shows: str | None = None
    state: str | None = None
    drops: tuple[str, ...] = ()
    exact: bool = False
    unseen: bool = False


class InjectedError(RuntimeError):
    """Broken on purpose."""


def raising(target: Any, name: str, error: BaseException | None = None, after: int = 0) -> Fault:
    """`target.name` raises, from the call after the first `after` ones on."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        original, calls = getattr(target, name), 0
        is_static = isinstance(inspect.getattr_static(target, name), staticmethod)

        def broken(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise error or InjectedError(f"{name} is broken")
            return original(*args, **kwargs)

        with mock.patch.object(target, name, staticmethod(broken) if is_static else broken):
            yield {}

    return inject


def setting(**variables: str) -> Fault:
    """Variables that an operator got wrong."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        yield variables

    return inject


def at(behaviour: endpoints.Behaviour) -> Fault:
    """The service's address is somebody else's."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        with endpoints.endpoint(behaviour) as url:
            yield {"MOESCOPE_ENDPOINT": url}

    return inject


def returning(target: Any, name: str, value: Any) -> Fault:
    """`target.name` returns something else."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        with mock.patch.object(target, name, return_value=value):
            yield {}

    return inject


@contextlib.contextmanager
def broken_import() -> Iterator[Environment]:
    """A module of the capturer can't be imported, as where a dependency is missing."""
    with mock.patch.dict(sys.modules, {"moescope.capture.session": None}):
        anew = executed_anew(mixin)
    with mock.patch.object(mixin, "_import_error", anew._import_error):
        yield {}


@contextlib.contextmanager
def no_thread() -> Iterator[Environment]:
    """The process may start no more threads."""
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("moescope"):
            raise RuntimeError("can't start new thread")
        original(thread)

    with mock.patch.object(threading.Thread, "start", start):
        yield {}


@contextlib.contextmanager
def wall_clock(offset_ns: int) -> Iterator[Environment]:
    """The wall clock jumps after the session was opened."""
    original, calls = time.time_ns, 0

    def jumping() -> int:
        nonlocal calls
        calls += 1
        return original() + (offset_ns if calls > 2 else 0)

    with mock.patch.object(time, "time_ns", jumping):
        yield {}


@contextlib.contextmanager
def forked() -> Iterator[Environment]:
    """The worker's process forks in mid-run, as libraries do; the child ends at once."""
    original, done = session.CaptureSession.step_ends, False

    def step_ends(mine: session.CaptureSession) -> None:
        nonlocal done
        original(mine)
        if not done:
            done = True
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)

    with mock.patch.object(session.CaptureSession, "step_ends", step_ends):
        yield {}


@contextlib.contextmanager
def stolen_slot() -> Iterator[Environment]:
    """Somebody takes a router's only callback slot while requests are served."""
    original = session.CaptureSession.serving_begins

    def serving_begins(mine: session.CaptureSession) -> None:
        original(mine)
        mine._binding._routers[1].set_capture_fn(None)

    with mock.patch.object(session.CaptureSession, "serving_begins", serving_begins):
        yield {}


@contextlib.contextmanager
def odd_router() -> Iterator[Environment]:
    """A router without the interface that is known, found after others have been bound."""
    original = session.survey_model

    class Odd:
        capture_fn = None

    def with_odd(*args: Any, **kwargs: Any) -> survey.MoeSurvey:
        found = original(*args, **kwargs)
        odd = dataclasses.replace(found.routed[-1], router=Odd())
        return dataclasses.replace(found, routed=(*found.routed[:-1], odd))

    with mock.patch.object(session, "survey_model", with_odd):
        yield {}


@contextlib.contextmanager
def odd_ids() -> Iterator[Environment]:
    """Routing calls bring ids of one dimension."""
    original = capturer.RoutingCapturer.record

    def record(mine: capturer.RoutingCapturer, ordinal: int, ids: torch.Tensor) -> None:
        original(mine, ordinal, ids[:, 0])

    with mock.patch.object(capturer.RoutingCapturer, "record", record):
        yield {}


CASES: dict[str, Case] = {
    # What can go wrong while capture is opened: it stays off, and says so in frames too.
    "import error": Case(
        inject=broken_import, shows="capture is off, the server serves on: .*import of", state="disabled"
    ),
    "bad setting": Case(
        inject=setting(MOESCOPE_INTERVAL="soon"),
        shows="capture is off.*MOESCOPE_INTERVAL: 'soon'",
        state="disabled",
    ),
    "token file missing": Case(
        inject=setting(MOESCOPE_TOKEN_FILE="/nowhere/token"),
        shows="MOESCOPE_TOKEN_FILE: .* can't be read",
        state="disabled",
    ),
    "survey fails": Case(
        inject=raising(session, "survey_model"),
        shows="capture is off.*survey_model is broken",
        state="disabled",
    ),
    "no memory for counts": Case(
        inject=raising(reference.CountBuffers, "__init__", torch.OutOfMemoryError("no memory")),
        shows="capture is off.*OutOfMemoryError: no memory",
        state="disabled",
    ),
    "router of another kind": Case(
        inject=odd_router, shows="capture is off.*set_capture_fn", state="disabled"
    ),
    "ranks unknown": Case(
        inject=raising(session, "read_producer"),
        shows="capture is off.*read_producer is broken",
        state="disabled",
    ),
    "version can't be told": Case(
        inject=raising(identity, "vllm_version"),
        shows="capture is off.*vllm_version is broken",
        state="disabled",
    ),
    "unknown version": Case(
        inject=returning(versions, "vllm_version", "9.9.0"),
        shows="not tested with vLLM 9.9.0",
        state="counting",
        exact=True,
    ),
    # What can go wrong in a step: capture ends for good and says so, in the log and in its frames.
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
        inject=lambda: _unknown_layout(MOESCOPE_ON_ERROR="disable"),
        shows="off for good.*rows fit no known layout",
        state="disabled",
    ),
    "unknown layout in traffic, by default": Case(
        inject=lambda: _unknown_layout(), shows="off for good.*rows fit no known layout", state="disabled"
    ),
    "forward context fails": Case(
        inject=lambda: _context_fails(), shows="off for good.*no context", state="disabled"
    ),
    "ids of another shape": Case(
        inject=odd_ids, shows=r"off for good.*must be \[n, top_k\]", state="disabled"
    ),
    "step can't begin": Case(
        inject=raising(capturer.RoutingCapturer, "begin_step", after=3),
        shows="off for good.*begin_step is broken",
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
        inject=lambda: _with(raising(tracer.Tracer, "begin_step", after=3), MOESCOPE_TRACE_RATE="1"),
        shows=r"not available: traces \(.*begin_step is broken",
        state="counting",
        exact=True,
    ),
    "batch can't be read": Case(
        inject=lambda: _with(raising(requests, "batch_order", after=3), MOESCOPE_TRACE_RATE="1"),
        shows=r"not available: phases \(.*batch_order is broken",
        state="counting",
        exact=True,
    ),
    # What can go wrong in the sender's thread: counts are kept.
    "no thread": Case(inject=no_thread, shows="off for good.*can't start new thread"),
    "thread dies": Case(
        inject=raising(sender.FrameSender, "tick", SystemExit(), after=4), shows="sender's thread has ended"
    ),
    "snapshot unreadable": Case(
        inject=raising(taker.SnapshotTaker, "_read", after=1),
        shows="a snapshot was not sent.*_read is broken",
    ),
    "unserialisable state": Case(
        inject=raising(builder.FrameBuilder, "build", TypeError("can't serialise"), after=1),
        shows="a snapshot was not sent.*can't serialise",
    ),
    "encoder fails once": Case(
        inject=lambda: _once(sender, "encode_frame"),
        shows="a snapshot was not sent",
        state="counting",
        drops=("sends_failed",),
        exact=True,
    ),
    # Endpoints.
    "refused": Case(inject=setting(MOESCOPE_ENDPOINT="http://127.0.0.1:1"), shows="can't be reached"),
    "no such name": Case(
        inject=setting(MOESCOPE_ENDPOINT="http://no-such-host.invalid:9890"),
        shows="can't be reached.*gaierror",
    ),
    "silent": Case(inject=at(endpoints.silent), shows="can't be reached.*[Tt]imeout|timed out"),
    "deaf": Case(inject=at(endpoints.deaf), shows="can't be reached.*[Tt]imeout|timed out"),
    "resets": Case(inject=at(endpoints.resetting), shows="can't be reached"),
    "no http": Case(inject=at(endpoints.answering(b"\0\xff" * 500)), shows="can't be reached.*BadStatusLine"),
    "says 500": Case(
        inject=at(endpoints.answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno")),
        shows="answered 500: no",
    ),
    "redirects": Case(
        inject=at(
            endpoints.answering(
                b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
            )
        ),
        shows="answered 302",
    ),
    "endless answer": Case(inject=at(endpoints.endless), shows="no moescope service: 200 with 'xxx"),
    "dripping answer": Case(
        inject=at(endpoints.dripping), shows="can't be reached.*[Tt]imeout|took too long"
    ),
    "another server": Case(
        inject=at(endpoints.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")),
        shows="no moescope service: 200 with '<html></html>'",
    ),
    # The world.
    "clock jumps back": Case(inject=lambda: wall_clock(-3600 * 10**9), state="counting", exact=True),
    "clock jumps ahead": Case(inject=lambda: wall_clock(3600 * 10**9), state="counting", exact=True),
    "fork": Case(inject=forked, state="counting", exact=True),
}


@contextlib.contextmanager
def _with(fault: Fault, **variables: str) -> Iterator[Environment]:
    with fault() as environment:
        yield {**environment, **variables}


@contextlib.contextmanager
def _unknown_layout(**variables: str) -> Iterator[Environment]:
    error = AssertionError("rows fit no known layout")
    with raising(capturer, "rows_of_call", error, after=9)():
        yield variables


@contextlib.contextmanager
def _context_fails() -> Iterator[Environment]:
    original, calls = session.step_rows, 0

    def step_rows() -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise LookupError("no context")
        return original()

    with mock.patch.object(session, "step_rows", step_rows):
        yield {}


@contextlib.contextmanager
def _once(target: Any, name: str) -> Iterator[Environment]:
    original, calls = getattr(target, name), 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise InjectedError(f"{name} fails once")
        return original(*args)

    with mock.patch.object(target, name, broken):
        yield {}
