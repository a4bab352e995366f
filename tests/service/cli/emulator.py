"""A command on a pseudo terminal of its own, with what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyte

from tests.service.cli.running import COMMAND, DEADLINE_S


class Terminal:
    """``moescope``, or another command, on the terminal that controls it, as in a login.

    Attributes:
        sent: all bytes that the command wrote.
    """

    def __init__(
        self, *arguments: str | Path, columns: int = 100, lines: int = 30, command: str = COMMAND
    ) -> None:
        self.sent = b""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        words = [command, *map(str, arguments)]
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        # A program that is forked between threads may do nothing but start another one.
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.execve(command, words, environment)
        self._set_size(columns, lines)
        self.before = termios.tcgetattr(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._end)

    @property
    def lines(self) -> list[str]:
        """What the screen shows."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """What the screen shows, in one text with single blanks."""
        return " ".join(" ".join(self.lines).split())

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._end, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size; the kernel tells the command."""
        self._screen.resize(lines, columns)
        self._set_size(columns, lines)

    def wait_for(self, seen: Callable[[], bool], what: str) -> None:
        """Read until the screen is as wanted."""
        deadline = time.monotonic() + DEADLINE_S
        while not seen():
            assert time.monotonic() < deadline, f"never {what}:\n" + "\n".join(self.lines)
            self._read(0.1)

    def code(self) -> int:
        """The exit code, once the command has ended."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline, "it does not end:\n" + "\n".join(self.lines)
            self._read(0.1)
        self._read(0)
        return os.waitstatus_to_exitcode(found[1])

    def restored(self) -> bool:
        """Whether modes and screen are as they were: echo and lines, the cursor, the usual screen."""
        return termios.tcgetattr(self._end) == self.before and self.usual_screen()

    def usual_screen(self) -> bool:
        """Whether the usual screen with its cursor is there again."""
        usual = self.sent.rfind(b"\x1b[?1049l") > self.sent.rfind(b"\x1b[?1049h") > -1
        return usual and self.sent.rfind(b"\x1b[?25h") > self.sent.rfind(b"\x1b[?25l")

    def _read(self, seconds: float) -> None:
        while select.select([self._end], [], [], seconds)[0]:
            try:
                data = os.read(self._end, 65536)
            except OSError:  # nobody has the other end any more
                return
            if not data:
                return
            self.sent += data
            self._stream.feed(data)
            seconds = 0

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
