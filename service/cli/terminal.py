"""Where the commands print answers of the service."""

from __future__ import annotations

from rich.console import Console


def terminal(stderr: bool = False) -> Console:
    """A console that prints names and notes as they are, which may look like rich's markup: ``m[/v2]``."""
    return Console(stderr=stderr, markup=False, emoji=False)


def printable(text: str) -> str:
    """A text that clients of vLLM chose, such as a request's id, with U+FFFD for what terminals obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
