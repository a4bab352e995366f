"""Runs the command line, in this process or in one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
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

    Its streams are no terminals, as in a pipe, and ``columns`` columns wide. An exception that the command
    does not handle reaches the test.
    """
    words = ["moescope", *map(str, arguments)]
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    hook = sys.excepthook  # typer sets one of its own
    try:
        with (
            _captured() as (out, err),
            mock.patch.object(sys, "argv", words),
            mock.patch.dict(os.environ, environment),
        ):
            code = _exit_code()
            out.flush()
            err.flush()
            return Done(code, _text(out), _text(err))
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


@contextmanager
def _captured() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
