"""TLS handshakes that don't harm: counted and bounded from accept on, with a line in the log where they fail.

A server of asyncio gives a handshake 60 s, and tells nobody of a connection before it is over.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from moescope.service.serving.connections import Crowd, PatientProtocol

_WORDS: Final = {
    "HTTP_REQUEST": "it sent plain HTTP to the port of HTTPS: give it an address with https://",
    "WRONG_VERSION_NUMBER": "it sent no TLS to the port of HTTPS: give it an address with https://",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate of its own, which tls_client_ca asks for: "
    "give it one with MOESCOPE_CERT_FILE",
    "TLSV1_ALERT_UNKNOWN_CA": "it doesn't trust the certificate of this service: give it the authority with "
    "MOESCOPE_CA_FILE",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it doesn't take the certificate of this service",
}


@dataclass(eq=False, slots=True)
class Handshake:
    """A connection that waits for TLS.

    Attributes:
        client: address and port of the client.
        task: waits for the handshake.
        began: whether the task has run; from then on the loop closes the connection.
        cycle: no request, ever.
    """

    client: tuple[str, int]
    task: asyncio.Task[None] | None = None
    began: bool = False
    cycle: None = None

    @property
    def transport(self) -> Handshake:
        """What ends the connection."""
        return self

    def abort(self) -> None:
        """End the connection at once."""
        if self.task is not None:
            self.task.cancel()


class Acceptor:
    """Accepts connections of listening sockets, in place of uvicorn.

    Args:
        crowd: all connections of the server.
        context: the service's certificate.
        make: makes the protocol that talks HTTP, once the handshake is over.
        connections: uvicorn's: all connections that talk HTTP.
    """

    def __init__(
        self,
        crowd: Crowd,
        context: ssl.SSLContext,
        make: Callable[[], PatientProtocol],
        connections: set[Any],
    ) -> None:
        self._crowd = crowd
        self._context = context
        self._make = make
        self._connections = connections
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, listeners: Iterable[socket.socket]) -> None:
        """Accept from now on, in the loop that runs."""
        for listener in listeners:
            listener.setblocking(False)
            self._tasks.append(asyncio.get_running_loop().create_task(self._accept(listener)))

    def stop(self) -> None:
        """Accept no more, and end the handshakes."""
        for task in self._tasks:
            task.cancel()
        for handshake in list(self._crowd.handshakes):
            handshake.transport.abort()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, client = await loop.sock_accept(listener)
            except OSError as error:  # such as no file left; the connection waits in the backlog
                self._crowd.warn("accept", f"no connection can be taken: {error.strerror or error}")
                await asyncio.sleep(0.1)
                continue
            handshake = Handshake(client)
            self._crowd.waiting[handshake] = None
            self._crowd.handshakes.add(handshake)
            handshake.task = loop.create_task(self._shake(handshake, connection))
            handshake.task.add_done_callback(partial(self._end, handshake, connection))
            self._crowd.make_room(len(self._connections))
            await asyncio.sleep(0)  # asyncio's sock_accept doesn't let others run while connections wait

    async def _shake(self, handshake: Handshake, connection: socket.socket) -> None:
        loop, seconds = asyncio.get_running_loop(), self._crowd.header_timeout_s
        handshake.began = True

        def make() -> asyncio.Protocol:  # the loop asks for it before the handshake
            protocol = self._make()
            protocol.handshake = handshake
            return protocol

        try:
            await loop.connect_accepted_socket(
                make, connection, ssl=self._context, ssl_handshake_timeout=seconds
            )
        except ssl.SSLError as error:
            self._crowd.count("tls", handshake.client, _why(error))
        except OSError as error:
            if "taking longer" in str(error):  # otherwise it hung up
                self._crowd.count("slow_tls", handshake.client, f"no whole TLS handshake in {seconds:g} s")

    def _end(self, handshake: Handshake, connection: socket.socket, _: asyncio.Task[None]) -> None:
        """The handshake is over; a task that was cancelled before it began has run no line."""
        self._crowd.forget(handshake)
        if not handshake.began:
            connection.close()


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not taken ({error.verify_message}): tls_client_ca names who may issue one"
    return _WORDS.get(error.reason or "", f"no TLS handshake: {error.reason or error}")
