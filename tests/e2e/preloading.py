"""A process that has imported vLLM and forks servers: ``python -m tests.e2e.preloading SOCKET MODULE...``.

The socket is a file descriptor. A message on it is a JSON object. ``command``, ``environment`` and
``folder``, with a file descriptor for all output, start a server; the answer is its process id, which is its
group's id too. ``poll`` and a process id are answered with its exit status, or null while it runs. When the
other end closes, everything that was started ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import setproctitle

LONGEST: Final = 1 << 20
"""Bytes of a message."""


@dataclass(frozen=True)
class Order:
    """A server to start: ``vllm``'s path and arguments, its environment and folder, and where it writes."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    output: int

    def become(self) -> None:
        """Turn this process, a new fork, into what the command starts, but for the imports."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(self.output, 1)
        os.dup2(self.output, 2)
        os.close(self.output)
        os.chdir(self.folder)
        setproctitle.setproctitle(" ".join(self.command))
        os.environ.clear()
        os.environ.update(self.environment)
        paths = self.environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if path and path not in sys.path]
        sys.argv = self.command


def import_all(modules: Sequence[str]) -> None:
    """Import what servers need, and set it aside from the garbage collections of all forks."""
    gc.disable()  # modules stay: to look for garbage among them takes a second
    with warnings.catch_warnings(action="ignore"):
        for name in modules:
            importlib.import_module(name)
    setproctitle.getproctitle()  # it finds its place only while the environment is as the process got it
    gc.collect()
    gc.freeze()
    gc.enable()


def next_order(tests: socket.socket) -> Order | None:
    """Fork for one order after another. Returns in each fork its order, and None at the end of the tests."""
    running: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(tests, LONGEST, 1)
        if not message:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        asked: dict[str, Any] = json.loads(message)
        if "poll" in asked:
            ended, status = os.waitpid(asked["poll"], os.WNOHANG)
            running.discard(ended)
            tests.send(json.dumps(os.waitstatus_to_exitcode(status) if ended else None).encode())
            continue
        (output,) = descriptors
        pid = _fork_a_group()
        if pid == 0:
            tests.close()
            return Order(asked["command"], asked["environment"], asked["folder"], output)
        os.close(output)
        running.add(pid)
        tests.send(json.dumps(pid).encode())


def _fork_a_group() -> int:
    """Like `os.fork`; the child leads a new group and session when this returns."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
    else:
        os.close(writer)
        os.read(reader, 1)
        writer = reader
        reader = -1
    for descriptor in (reader, writer):
        if descriptor >= 0:
            os.close(descriptor)
    return pid


def main(descriptor: str, *modules: str) -> None:
    import_all(modules)
    with socket.socket(fileno=int(descriptor)) as tests:
        tests.send(b"ready")
        order = next_order(tests)
    if order is None:
        os._exit(0)  # without what libraries say of their leaks
    order.become()
    runpy.run_path(order.command[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
