"""Running the application: a socket of our own, and a clean end on SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Generator
from typing import Final

import uvicorn
from fastapi import FastAPI

from moescope.service.settings import Settings

# Capturers and scrapers keep their connection between two requests.
_KEEP_ALIVE_S: Final = 75
_SHUTDOWN_S: Final = 3


class ListenError(OSError):
    """The address can't be listened on; the message says what to do."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 when it is asked to end.

    uvicorn sends itself the signal again after its end, which would make an orderly end look like a crash.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the application first, so that answers without an end (/v1/live) end themselves."""
        if isinstance(self.config.app, FastAPI):
            self.config.app.state.stopping = True
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGINT and SIGTERM while serving; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
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


def address_of(listener: socket.socket) -> str:
    """The URL to reach a listening socket at, with the port that it really has."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI) -> Server:
    """A server for ``app``; ``run(sockets=[...])`` serves until a signal, or until ``should_exit`` is set."""
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
