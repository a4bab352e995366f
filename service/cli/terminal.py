"""What the commands print, and how they end when something is wrong.

Exit codes: 0, the command did its work; 1, nothing could be delivered (``moescope simulate``), or the
service's extra is not installed; 2, a bad option, setting or file, no service, or one that refuses. Those of
``moescope verdict`` are 3 for a warning and 4 for a critical one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from moescope.service.logs import printable


class _Terminal(Console):
    """A console on which what others chose, such as a deployment's name, is only shown and never obeyed."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is measured and shown."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of what is shown; rich's own styles and controls are no part of their texts."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(printable(segment.text), segment.style)
            else:
                yield segment


def terminal(stderr: bool = False) -> Console:
    """A console that prints names and notes as they are, which may look like rich's markup: ``m[/v2]``."""
    return _Terminal(stderr=stderr, markup=False, emoji=False)


def say(text: str, err: bool = False) -> None:
    """Print a line to stdout, or to stderr; see :func:`moescope.service.logs.printable`."""
    typer.echo(printable(text), err=err)


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
    say(json.dumps(answer, indent=2))


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file; end the command where that fails."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise failure(f"{path} can't be written: {error.strerror}") from None


def failure(message: str) -> typer.Exit:
    """Print what is wrong. Raising the result ends the command with exit code 2."""
    say(f"moescope: {message}", err=True)
    return typer.Exit(2)


@contextmanager
def ending_at(*kinds: type[Exception]) -> Iterator[None]:
    """End the command at an exception of these kinds, whose message tells its user what to do."""
    try:
        yield
    except kinds as error:
        raise failure(str(error)) from None
