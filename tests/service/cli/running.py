"""Runs the command line, in this process or in one of its own."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from unittest import mock

from moescope.service.cli import main

COMMAND = str(Path(sys.executable).with_name("moescope"))
"""The installed command. Tests of signals, pipes and the start itself run it as a process."""
MODULE = (sys.executable, "-m", "moescope.service")
"""The command by its module."""
DEADLINE_S = 60.0
"""Longest time that a process may take for anything, so that a busy machine breaks no test."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(*arguments: str | Path, columns: int = 120) -> Done:
    """Run ``moescope`` in this process, through the entry point that is installed.

    Its streams are no terminals, as in a pipe. An exception that the command does not handle reaches the
    test.
    """
    return _run(arguments, columns, _Captured)


def run_in_terminal(*arguments: str | Path, columns: int = 80, color: bool = False) -> Done:
    """The same with stdout and stderr on a real terminal of so many columns, which shows both in one text."""
    return _run(arguments, columns, _InTerminal, color)


def _run(
    arguments: tuple[str | Path, ...], columns: int, streams: type[_Captured], color: bool = False
) -> Done:
    words = ["moescope", *map(str, arguments)]
    environment = {"COLUMNS": str(columns), "TERM": "xterm-256color"} | ({} if color else {"NO_COLOR": "1"})
    hook = sys.excepthook  # typer sets one of its own
    try:
        with (
            streams() as captured,
            redirect_stdout(captured.out),
            redirect_stderr(captured.err),
            mock.patch.object(sys, "argv", words),
            mock.patch.dict(os.environ, environment),
        ):
            if color:
                os.environ.pop("NO_COLOR", None)
            code = _exit_code()
            return Done(code, *captured.texts())
    finally:
        sys.excepthook = hook


def run_process(*arguments: str | Path) -> Done:
    """Run ``moescope`` in a process of its own."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def _exit_code() -> int:
    """What the process would exit with: None is 0, as the interpreter has it."""
    try:
        code = main()
    except SystemExit as end:
        code = end.code or 0
    assert isinstance(code, int), f"{code!r} is no exit code"
    return code


class _Captured:
    """Streams into memory."""

    def __init__(self) -> None:
        self.out, self.err = (
            io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def texts(self) -> tuple[str, str]:
        """What was written."""
        found = []
        for stream in (self.out, self.err):
            stream.flush()
            assert isinstance(stream.buffer, io.BytesIO)
            found.append(stream.buffer.getvalue().decode())
        return found[0], found[1]


class _InTerminal(_Captured):
    """Both streams are one pseudo terminal; a thread reads what it shows."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.out = self.err = open(theirs, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - __exit__ closes it
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __exit__(self, *_: object) -> None:
        self._end()

    def texts(self) -> tuple[str, str]:
        """What the terminal got, whichever stream it came from."""
        self._end()
        return self._shown.decode().replace("\r\n", "\n"), ""

    def _end(self) -> None:
        if self._reader.is_alive():
            self.out.close()
            self._reader.join(DEADLINE_S)
            os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                self._shown += os.read(self._ours, 65536)
            except OSError:  # the other end is closed
                return


def plain(shown: str) -> str:
    """What a terminal shows, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
