"""The demo's displays: tables in place on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from devkit import vllm_server
from devkit.demo_tables import Readings, render

SECONDS_BETWEEN_LINES: Final = 10.0


class Show(Protocol):
    """Shows the readings, and ``done`` of ``total`` completions; without a total there is no end."""

    def __call__(self, readings: Readings | None, done: int, total: int | None) -> None:  # noqa: D102
        ...


@contextmanager
def starting(console: Console) -> Iterator[Callable[[vllm_server.Progress], None]]:
    """Shows how far vLLM's start is."""
    if not console.is_terminal:
        say = _Sometimes(console)
        yield lambda now: say(f"starting vLLM, {now.seconds:.0f} s: {now.text[:80]}")
        return
    with console.status("starting vLLM") as status:
        width = max(10, console.width - 30)
        yield lambda now: status.update(f"starting vLLM, {now.seconds:.0f} s: {_plain(now.text[:width])}")


@contextmanager
def watching(console: Console) -> Iterator[Show]:
    """Shows the tables and the progress of the completions."""
    if not console.is_terminal:
        say = _Sometimes(console)
        yield lambda _, done, total: say(f"{done} of {total} completions" if total else f"{done} completions")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, auto_refresh=False)
    task = progress.add_task("completions", total=None)
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(readings: Readings | None, done: int, total: int | None) -> None:
            description = "completions" if total else "completions, one a second; Ctrl-C ends"
            progress.update(task, completed=done, total=total, description=description)
            live.update(Group(render(readings), progress), refresh=True)

        yield show


class _Sometimes:
    """Prints a line unless it printed one a moment ago."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: float | None = None

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if self._last is None or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._console.print(line, markup=False, highlight=False)


def _plain(text: str) -> str:
    """The text, safe from being read as rich's markup."""
    return text.replace("[", "\\[")
