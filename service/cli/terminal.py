"""What the commands print, and how they end when something is wrong.

Exit codes: 0, the command did its work; 1, nothing could be delivered (``moescope simulate``), or the
service's extra is not installed; 2, a bad option, setting or file, no service, or one that refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.live import Live


def terminal(stderr: bool = False) -> Console:
    """A console that prints names and notes as they are, which may look like rich's markup: ``m[/v2]``."""
    return Console(stderr=stderr, markup=False, emoji=False)


def printable(text: str) -> str:
    """A text that clients of vLLM chose, such as a request's id, with U+FFFD for what terminals obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def utc(instant: float) -> str:
    """Seconds of Unix time as a date and a time of day in UTC."""
    return datetime.fromtimestamp(instant, UTC).strftime("%F %T")


def printing(render: Callable[[], RenderableType], interval_s: float | None) -> None:
    """Print what ``render`` gives, once or every ``interval_s`` seconds until Ctrl-C."""
    console = terminal()
    if interval_s is None:
        console.print(render())
        return
    try:
        while not console.is_terminal:  # a file or a pipe gets one after the other, Live only the last
            console.print(render())
            time.sleep(interval_s)
        with Live(render(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                live.update(render(), refresh=True)
    except KeyboardInterrupt:
        return


def print_json(answer: dict[str, Any]) -> None:
    """Print an answer of the service for programs."""
    typer.echo(json.dumps(answer, indent=2))


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file; end the command where that fails."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise failure(f"{path} can't be written: {error.strerror}") from None


def failure(message: str) -> typer.Exit:
    """Print what is wrong. Raising the result ends the command with exit code 2."""
    typer.echo(f"moescope: {message}", err=True)
    return typer.Exit(2)


@contextmanager
def ending_at(*kinds: type[Exception]) -> Iterator[None]:
    """End the command at an exception of these kinds, whose message tells its user what to do."""
    try:
        yield
    except kinds as error:
        raise failure(str(error)) from None
