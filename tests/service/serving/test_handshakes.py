"""Handshakes in the loop of asyncio and in that of uvloop, which accept in different ways."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

import pytest
import trustme

from moescope.service.serving.connections import Crowd, PatientProtocol
from moescope.service.serving.handshakes import Acceptor

DEADLINE_S = 60.0
MOST = 50
AUTHORITY = trustme.CA()
TRUST = ssl.create_default_context()
AUTHORITY.configure_trust(TRUST)


class Server:
    """Accepts connections of TLS, which say nothing after it.

    Attributes:
        crowd: its connections.
        talking: those whose handshake is over.
        address: where it listens.
    """

    def __init__(self, most: int = MOST) -> None:
        self.crowd = Crowd(DEADLINE_S, most, 1 << 20)
        self.talking: set[Any] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self._listener.getsockname()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        self._acceptor = Acceptor(self.crowd, context, self._make, self.talking)

    def _make(self) -> PatientProtocol:
        class Talker(PatientProtocol):
            crowd, connections, cycle = self.crowd, self.talking, None

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.Transport", transport)
                self.client = transport.get_extra_info("peername")
                self.connections.add(self)  # as uvicorn's does
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                self.connections.discard(self)
                super().connection_lost(exc)

        return Talker()

    def start(self) -> None:
        self._acceptor.start([self._listener])

    async def stop(self) -> None:
        self._acceptor.stop()
        for protocol in list(self.talking):
            protocol.transport.abort()
        await until(lambda: not self.talking and not self.crowd.handshakes)
        self._listener.close()


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def trusting(address: tuple[str, int]) -> ssl.SSLSocket:
    """An honest client."""
    made = TRUST.wrap_socket(
        socket.create_connection(address, timeout=DEADLINE_S), server_hostname="127.0.0.1"
    )
    assert made.version()
    return made


Scenario = Callable[[Server, AsyncExitStack], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[[Scenario, Server], None]:
    """Play a scenario in a loop of that kind; the service has uvloop's where that is installed."""
    loops = pytest.importorskip(request.param)

    async def whole(scenario: Scenario, server: Server) -> None:
        async with AsyncExitStack() as clients:
            clients.push_async_callback(server.stop)
            await scenario(server, clients)

    def run(scenario: Scenario, server: Server) -> None:
        with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
            runner.run(whole(scenario, server))

    return run


Play = Callable[[Scenario, Server], None]


def test_a_burst_of_silent_connections_leaves_nothing_behind(play: Play) -> None:
    """In the loop of asyncio the first burst filled the crowd for good with handshakes that never began."""

    async def burst(server: Server, clients: AsyncExitStack) -> None:
        silent = [clients.enter_context(socket.create_connection(server.address)) for _ in range(200)]
        server.start()
        await until(lambda: server.crowd.ended["crowded"] == 200 - MOST)
        assert len(server.crowd.handshakes) == MOST
        for client in silent[: 200 - MOST]:  # the oldest
            client.settimeout(DEADLINE_S)
            with suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1) == b""
        for client in silent:
            client.close()
        await until(lambda: not server.crowd.handshakes)
        assert not server.crowd.waiting
        for _ in range(2):
            clients.enter_context(await asyncio.to_thread(trusting, server.address))
        await until(lambda: len(server.talking) == 2)
        assert not server.crowd.handshakes
        assert server.crowd.ended["crowded"] == 200 - MOST

    play(burst, Server())


def test_a_connection_that_goes_at_once_is_closed_once(play: Play) -> None:
    """Where all others are at work, the newest is the oldest that waits: it goes before its task begins."""

    async def full(server: Server, clients: AsyncExitStack) -> None:
        busy = {object() for _ in range(server.crowd.max_connections)}
        server.talking |= busy
        client = clients.enter_context(socket.create_connection(server.address, timeout=DEADLINE_S))
        server.start()
        with suppress(ConnectionResetError):
            assert await asyncio.to_thread(client.recv, 1) == b""
        await until(lambda: not server.crowd.handshakes)
        server.talking -= busy
        clients.enter_context(await asyncio.to_thread(trusting, server.address))

    play(full, Server())


def test_a_connection_counts_once_when_its_handshake_is_over(play: Play) -> None:
    """It was counted as both, so that the last one that there is room for pushed the oldest out."""

    async def fill(server: Server, clients: AsyncExitStack) -> None:
        server.start()
        for number in range(server.crowd.max_connections):
            clients.enter_context(await asyncio.to_thread(trusting, server.address))
            await until(lambda wanted=number + 1: len(server.talking) == wanted)
        assert not server.crowd.ended["crowded"]

    play(fill, Server(16))
