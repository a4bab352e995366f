"""Starts and stops helper processes so that none is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Protocol

import psutil  # type: ignore[import-untyped]

# Signals to send, and how many seconds to wait for all processes to end before the next signal. vLLM ends
# within one second, unless a request is running: then it kills its engines first and waits for its answer for
# ever.
STOP_STEPS: Final = ((signal.SIGINT, 6.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))
UNGIVEN: Final = range(12_000, 29_000)
"""Ports that Linux gives to nobody by itself, and vLLM and browsers have no other use for."""
NOISE: Final = (" - leaked ", " - ... skipped", "nanobind: ", "See https://nanobind")


class LeftoverProcessError(RuntimeError):
    """Processes that are alive even after SIGKILL."""


class Started(Protocol):
    """A process that was started as the leader of a new group and session."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs; reaps it."""

    def wait(self) -> int:
        """Its exit status, once it has ended; reaps it."""


Launch = Callable[[Sequence[str], IO[bytes], Mapping[str, str]], Started]
"""Starts a command with a file for all its output, and its environment."""


def launched(command: Sequence[str], output: IO[bytes], env: Mapping[str, str]) -> Started:
    """A process of its own."""
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
    )


class ProcessGroup:
    """A command in a process group and session of its own, with its output in a log file.

    A group of its own keeps the terminal's Ctrl-C from reaching it: the owner decides when and in which order
    things stop. :meth:`stop` ends the command and whatever it started, in bounded time.
    """

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str], launch: Launch = launched
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = launch(command, output, env)
        self._seen: set[psutil.Process] = set()

    @property
    def pid(self) -> int:
        """The command's process id, which is its group's id too."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """The command's exit status, None while it runs."""
        return self._process.poll()

    def alive(self) -> list[psutil.Process]:
        """Those of the command, its group and its descendants that run now; zombies don't count."""
        self._look()
        return sorted((process for process in self._seen if _runs(process)), key=lambda process: process.pid)

    def last_line(self) -> str:
        """The log's last line that isn't empty, or nothing."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def stop(self, steps: Sequence[tuple[signal.Signals, float]] = STOP_STEPS) -> None:
        """End everything: politely first, then less so. Does nothing when all has ended.

        Raises:
            LeftoverProcessError: something outlived SIGKILL.
        """
        for number, patience in steps:
            running = self.alive()
            if number == signal.SIGINT:  # the polite one, to the command only: it ends its children itself
                running = [process for process in running if process.pid == self.pid]
            if not running:
                continue
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            self._wait(patience)
        if running := self.alive():
            raise LeftoverProcessError(f"still alive: {[(p.pid, p.name()) for p in running]}")
        self._process.wait()

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.alive():
            self._process.poll()  # reaps it
            time.sleep(0.05)

    def _look(self) -> None:
        """Remember the group and all descendants, so that a child that outlives its parent is found."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.pid:
                    self._seen.add(process)
        for process in list(self._seen):
            with contextlib.suppress(psutil.Error):
                self._seen.update(process.children(recursive=True))


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def tail(log: str, lines: int = 30) -> str:
    """The last lines of a log's text, without those in which libraries complain of their leaks at exit."""
    return "\n".join([line for line in log.splitlines() if not line.startswith(NOISE)][-lines:])


def free_port() -> int:
    """A TCP port on loopback that nobody uses now.

    The kernel gives no connection such a port. So it is still free seconds later, whatever else runs.
    """
    while not port_is_free(port := random.SystemRandom().choice(UNGIVEN)):
        pass
    return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
