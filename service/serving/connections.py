"""Connections that don't harm: deadlines for slow clients, upper bounds for heads and for all connections.

uvicorn waits for a request's head, and for a client to read its answer, as long as the client likes; with
httptools it also takes heads and trailers of any size. Bodies have a deadline and a bound where they are read
(``api/params/bodies.py``), and idle connections have uvicorn's deadline.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any, Final, Protocol

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from moescope.service.logs import Throttle

_log = logging.getLogger(__name__)

STALL_S: Final = 10.0
"""In so many seconds a client must read MIN_READ of what waits for it, or all of it."""
MIN_READ: Final = 64 * 1024
MAX_HEAD: Final = 64 * 1024
"""Bytes of a head or a trailer; as much as uvicorn takes with h11."""
_SPARE_FILES: Final = 128  # the store, its readers, the log, listeners

# httptools calls the protocol back for each part of a request; h11 doesn't, and has a limit of its own.
_CALLS_BACK: Final = hasattr(AutoHTTPProtocol, "on_headers_complete")


_REASONS: Final = ("slow_tls", "tls", "slow_head", "large_head", "slow_reader", "unread", "crowded")


class Endable(Protocol):
    """What ends a connection."""

    def abort(self) -> None:
        """End it at once."""


class Connected(Protocol):
    """A connection, as far as it is ended."""

    cycle: Any

    @property
    def client(self) -> tuple[str, int] | None:
        """Address and port of the client."""

    @property
    def transport(self) -> Endable:
        """What ends it."""

    def __hash__(self) -> int:
        """By identity."""


class Crowd:
    """All connections of one server.

    Args:
        header_timeout_s: how long a request's head may take, from the connection's or the head's begin.
        max_connections: beyond it the connection goes that has waited longest for a request.
        max_unread: bytes of all answers that wait to be read; beyond it the slowest reader goes.
    """

    def __init__(self, header_timeout_s: float, max_connections: int, max_unread: int) -> None:
        self.header_timeout_s = header_timeout_s
        self.max_connections = _possible(max_connections)
        self.max_unread = max_unread
        self.waiting: dict[Connected, None] = {}
        """Connections that wait for a handshake of TLS or for a whole head, the oldest first."""
        self.handshakes: set[Connected] = set()
        """Connections that don't talk HTTP yet."""
        self.reading: dict[PatientProtocol, None] = {}
        """Connections whose clients have much of an answer to read, the longest reading first."""
        self.ended = dict.fromkeys(_REASONS, 0)
        self._throttle = Throttle(time.monotonic)

    def end(self, protocol: Connected, reason: str, words: str) -> None:
        """Cut a connection off."""
        self.count(reason, protocol.client, words)
        if protocol.cycle is not None:
            # The application may be about to write; uvicorn hears of the end later.
            protocol.cycle.disconnected = True
        protocol.transport.abort()

    def count(self, reason: str, client: tuple[str, int] | None, words: str) -> None:
        """Count a connection that was cut off, and say so in the log."""
        self.ended[reason] += 1
        self.warn(
            f"{reason} {words}", f"ended a connection of {client[0] if client else 'a client'}: {words}"
        )

    def warn(self, kind: str, words: str) -> None:
        """Say something in the log, once a minute of each kind."""
        if self._throttle.allows(kind):
            _log.warning("%s (logged once a minute)", words)

    def make_room(self, talking: int) -> None:
        """End one connection if there are too many with the ``talking`` ones, which may be the new one."""
        if talking + len(self.handshakes) > self.max_connections and self.waiting:
            oldest = next(iter(self.waiting))
            self.forget(oldest)
            self.end(oldest, "crowded", f"there are over max_connections ({self.max_connections})")

    def forget(self, connection: Connected) -> None:
        """A connection's wait, for its handshake or for a head, is over."""
        self.waiting.pop(connection, None)
        self.handshakes.discard(connection)

    def bound_unread(self) -> None:
        """End those that have been reading longest until what waits to be read fits."""
        sizes = {reader: reader.transport.get_write_buffer_size() for reader in self.reading}
        total = sum(sizes.values())
        for reader, size in sizes.items():
            if total <= self.max_unread:
                return
            self.reading.pop(reader)
            self.end(reader, "unread", f"answers of over max_unread_mib ({self.max_unread >> 20}) wait")
            total -= size


class PatientProtocol(asyncio.Protocol):
    """Adds deadlines to a protocol of uvicorn: for the head of each request, and for reading the answer.

    uvicorn has two protocols for HTTP and uses the one whose parser is installed. So this is a class to mix
    in: :func:`protocol_for` puts it before the protocol in use.

    Attributes:
        crowd: all connections of the server.
        client: uvicorn's: address and port of the client.
        connections: uvicorn's: all connections of the server.
        cycle: uvicorn's: the latest request with its answer.
        handshake: what the connection was before, with TLS.
        transport: uvicorn's.
    """

    crowd: Crowd
    client: tuple[str, int] | None
    connections: set[Any]
    cycle: Any
    handshake: Connected | None = None
    transport: asyncio.Transport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._head_size = 0  # bytes since the parser last got on to something that is not a head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        if self.handshake is not None:
            self.crowd.forget(self.handshake)  # otherwise it would count twice
        super().connection_made(transport)
        self._wait_for_head()
        self.crowd.make_room(len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Take bytes, and wait on if the head is not whole."""
        self._head_size += len(data) if _CALLS_BACK else 0
        super().data_received(data)
        if self._head_size > MAX_HEAD:
            self._stop_waiting()
            self.crowd.end(self, "large_head", f"a request's head or trailer has over {MAX_HEAD} bytes")
            return
        if self._answers():
            self._stop_waiting()
        else:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """httptools: the head is whole."""
        self._head_size = 0
        super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body."""
        self._head_size = 0
        super().on_body(body)  # type: ignore[misc]

    def on_message_complete(self) -> None:
        """httptools: the request is whole, with its trailer."""
        self._head_size = 0
        super().on_message_complete()  # type: ignore[misc]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the connection's timers."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Much waits to be read by the client: watch whether it reads."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._read_timer = self._later(STALL_S, self._look_at_reader)
        self.crowd.reading[self] = None
        self.crowd.bound_unread()

    def resume_writing(self) -> None:
        """The client has read: stop watching."""
        self._stop_watching()
        super().resume_writing()

    def _answers(self) -> bool:
        """Whether the application is at work on a request of this connection."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self.crowd.waiting[self] = None
            self._head_timer = self._later(self.crowd.header_timeout_s, self._give_up_on_head)

    def _stop_waiting(self) -> None:
        self.crowd.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up_on_head(self) -> None:
        self._stop_waiting()
        self.crowd.end(self, "slow_head", f"no whole request in {self.crowd.header_timeout_s:g} s")

    def _look_at_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if self._unread - unread < MIN_READ:
            self.crowd.end(self, "slow_reader", f"it reads less than {MIN_READ} bytes in {STALL_S:g} s")
            return
        self._unread = unread
        self._read_timer = self._later(STALL_S, self._look_at_reader)

    def _stop_watching(self) -> None:
        self.crowd.reading.pop(self, None)
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _later(self, seconds: float, action: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, action)


def protocol_for(crowd: Crowd) -> type[asyncio.Protocol]:
    """The protocol's class for one server's connections."""
    return type("Protocol", (PatientProtocol, AutoHTTPProtocol), {"crowd": crowd})


def _possible(wanted: int) -> int:
    """As many connections as the system lets this process have files, which is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft < needed:
            _log.warning(
                "max_connections is %d instead of %d: raise `ulimit -n`", soft - _SPARE_FILES, wanted
            )
            return max(16, soft - _SPARE_FILES)
    return wanted
