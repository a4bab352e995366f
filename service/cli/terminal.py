"""What the commands print, and how they end when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from moescope.service.cli.codes import ExitCode, code_of_status
from moescope.service.client.http import ServiceUnavailableError
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

    def on_broken_pipe(self) -> NoReturn:
        """The reader is gone, as ``head`` is after its lines; :func:`moescope.service.cli.main` tells it."""
        raise BrokenPipeError


def terminal(stderr: bool = False) -> Console:
    """A console that prints names and notes as they are, which may look like rich's markup: ``m[/v2]``.

    It has colours on terminals only, and none where NO_COLOR is set.
    """
    return _Terminal(stderr=stderr, markup=False, emoji=False, highlight=False)


def is_terminal(stderr: bool = False) -> bool:
    """Whether stdout, or stderr, is a terminal: a pipe or a file gets plain text and no progress."""
    stream = sys.stderr if stderr else sys.stdout
    return stream.isatty()


def say(text: str, err: bool = False) -> None:
    """Print a line to stdout, or to stderr; see :func:`moescope.service.logs.printable`."""
    typer.echo(printable(text), err=err)


def utc(instant: float) -> str:
    """Seconds of Unix time as a date and a time of day in UTC."""
    return datetime.fromtimestamp(instant, UTC).strftime("%F %T")


@contextmanager
def working(doing: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that the command works, if that is a terminal; the result changes what it says.

    Args:
        doing: what is being done, such as "asking http://gpu-7:9890".
    """
    if not is_terminal(stderr=True):
        yield lambda _: None
        return
    with terminal(stderr=True).status(Text(f"{doing} ...")) as status:
        yield lambda said: status.update(Text(f"{said} ..."))


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file; end the command where that fails."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise failure(f"{path} can't be written: {error.strerror}") from None


def failure(message: str, code: ExitCode = ExitCode.USAGE) -> typer.Exit:
    """Print what is wrong. Raising the result ends the command with this exit code."""
    say(f"moescope: {message}", err=True)
    return typer.Exit(code)


def code_of(error: Exception) -> ExitCode:
    """The exit code for an exception whose message tells its user what to do."""
    if isinstance(error, ServiceUnavailableError):
        return code_of_status(error.status)
    return ExitCode.USAGE


@contextmanager
def ending_at(*kinds: type[Exception]) -> Iterator[None]:
    """End the command at an exception of these kinds, whose message tells its user what to do."""
    try:
        yield
    except kinds as error:
        raise failure(str(error), code_of(error)) from None
