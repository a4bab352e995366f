"""Running the application: a socket of our own, files read again, a clean end on SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any, Final, Protocol

import uvicorn
from fastapi import FastAPI

from moescope.service.serving.connections import Crowd, PatientProtocol, protocol_for
from moescope.service.serving.handshakes import Acceptor
from moescope.service.serving.running import Running
from moescope.service.serving.tls import Tls
from moescope.service.settings import Settings

_log = logging.getLogger(__name__)
# Capturers and scrapers keep their connection between two requests.
_KEEP_ALIVE_S: Final = 75
_SHUTDOWN_S: Final = 3


class ListenError(OSError):
    """The address can't be listened on; the message says what to do."""


class Reloadable(Protocol):
    """What is read from files that may change."""

    def reload(self) -> bool:
        """Read again."""

    def reload_if_changed(self) -> None:
        """Read again if a file has changed."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 when it is asked to end, and reads files again on SIGHUP.

    uvicorn sends itself the signal again after its end, which would make an orderly end look like a crash.

    Args:
        config: uvicorn's.
        crowd: the connections.
        book: the tokens.
        tls: the service's certificate, or None for plain HTTP.
    """

    def __init__(self, config: uvicorn.Config, crowd: Crowd, book: Reloadable, tls: Tls | None) -> None:
        super().__init__(config)
        self.crowd = crowd
        self._tls = tls
        self._acceptor: Acceptor | None = None
        self._reloadables: list[Reloadable] = [book] if tls is None else [book, tls]
        self._hang_up = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections; those of TLS are not uvicorn's before their handshake is over."""
        if self._tls is None or sockets is None:
            await super().startup(sockets)
            return
        self._acceptor = Acceptor(
            self.crowd, self._tls.context, self._new_protocol, self.server_state.connections
        )
        self._acceptor.start(sockets)
        await super().startup([])

    def _new_protocol(self) -> PatientProtocol:
        make: Callable[..., Any] = self.config.http_protocol_class
        made: PatientProtocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def on_tick(self, counter: int) -> bool:
        """Read files again, if asked to or if they changed; uvicorn calls this ten times a second."""
        if self._hang_up:
            self._hang_up = False
            self._look_at_files(lambda item: item.reload())
        elif counter % 10 == 0:
            self._look_at_files(lambda item: item.reload_if_changed())
        return await super().on_tick(counter)

    def _look_at_files(self, look: Callable[[Reloadable], object]) -> None:
        for item in self._reloadables:
            try:
                look(item)
            except Exception:  # noqa: BLE001 - whatever is in a file, the service goes on with what it had
                _log.exception("a file was not read again, what was read before stays valid")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the application first, so that answers without an end (/v1/live) end themselves."""
        if isinstance(self.config.app, FastAPI):
            self.config.app.state.stopping = True
            running: Running = self.config.app.state.running
            running.end_soon()
        for connection in list(self.crowd.waiting):
            connection.transport.abort()  # nobody asked anything there yet
        if self._acceptor is not None:
            self._acceptor.stop()
        await super().shutdown(sockets)

    def reload(self, *_: object) -> None:
        """Read the files again soon; as a signal's handler it must not do it itself."""
        self._hang_up = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGINT, SIGTERM and SIGHUP while serving; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ends = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in ends}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(settings: Settings) -> socket.socket:
    """A listening socket at the settings' host and port.

    Raises:
        ListenError: the port is taken, or the host isn't this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ListenError(
            f"can't listen on {settings.host}:{settings.port} ({reason}): choose others with --host, --port"
        ) from error


def address_of(listener: socket.socket, tls: bool = False) -> str:
    """The URL to reach a listening socket at, with the port that it really has."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def make_server(app: FastAPI) -> Server:
    """A server for ``app`` (see ``create_app``).

    ``run(sockets=[...])`` serves until a signal, or until ``should_exit`` is set.

    Raises:
        TlsError: the certificate can't be used.
    """
    running: Running = app.state.running
    settings = running.settings
    crowd = Crowd(settings.header_timeout_s, settings.max_connections, settings.max_unread_mib << 20)
    tls = None if settings.tls_cert is None else Tls(settings)
    config = uvicorn.Config(
        app,
        http=protocol_for(crowd),
        log_config=None,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    return Server(config, crowd, running.book, tls)
