"""What can go wrong between the sender's thread and the service: counts are kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final
from unittest import mock

from moescope.capture.frames import builder, sender, taker
from tests.e2e.host import endpoints
from tests.e2e.host.injecting import (
    Case,
    Environment,
    Fault,
    InjectedError,
    raising,
    setting,
)


def at(behaviour: endpoints.Behaviour) -> Fault:
    """The service's address is somebody else's."""

    @contextlib.contextmanager
    def inject() -> Iterator[Environment]:
        with endpoints.endpoint(behaviour) as url:
            yield {"MOESCOPE_ENDPOINT": url}

    return inject


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
def once(target: Any, name: str) -> Iterator[Environment]:
    """The second call of `target.name` raises."""
    original, calls = getattr(target, name), 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise InjectedError(f"{name} fails once")
        return original(*args)

    with mock.patch.object(target, name, broken):
        yield {}


IN_SENDING: Final[dict[str, Case]] = {
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
        inject=lambda: once(sender, "encode_frame"),
        shows="a snapshot was not sent",
        state="counting",
        drops=("sends_failed",),
        exact=True,
    ),
    # What listens is no service.
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
}
