"""The texts of ``--help``: wrapped once, at the width of the terminal.

In the sources a text is wrapped for whoever reads these. Here its paragraphs become single lines, which the
help wraps when it is shown. Examples are lines that begin with two blanks; what an example does stands behind
it there, and above it as a comment in the help, so that the command itself can be copied.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from moescope.service.cli.terminal import is_terminal

_EXAMPLE = re.compile(r"  (?P<command>\S.*?)(?:\s{3,}(?P<comment>\S.*))?")
_KEEP = "\b\n"
"""Without rich, a paragraph that begins so keeps its line breaks."""


def flowing(text: str) -> str:
    """A text as the help takes it: paragraphs in single lines, examples with their comments above them."""
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(
        _kept(_example(lines)) if lines[0].startswith("  ") else " ".join(lines)
        for lines in (paragraph.split("\n") for paragraph in paragraphs)
    )


def sentence(text: str) -> str:
    """The first paragraph of a text in one line, as a list of commands has it."""
    return " ".join(text.strip("\n").split("\n\n")[0].split("\n"))


def listed(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they mean, aligned."""
    found = list(pairs)
    width = max(len(name) for name, _ in found)
    lines = (_wrapped(meaning, f"  {name:>{width}}  ", " " * (width + 4)) for name, meaning in found)
    return _kept(line for wrapped in lines for line in wrapped)


def _kept(lines: Iterable[str]) -> str:
    """Lines that stay lines."""
    return f"{'' if is_terminal() else _KEEP}{chr(10).join(lines)}"


def _example(lines: list[str]) -> Iterator[str]:
    indent = "" if is_terminal() else "  "  # rich takes it away where all other lines have it
    commands: list[str] = []
    comment: list[str] = []
    for line in lines:
        found = _EXAMPLE.fullmatch(line)
        if found is None or found["command"] is None or line.startswith("   "):
            comment.append(line.strip())  # goes on from the line above
            continue
        commands.append(f"{indent}{found['command']}")
        if found["comment"]:
            comment.append(found["comment"])
    if comment:
        yield from _wrapped(" ".join(comment), f"{indent}# ", f"{indent}# ")
    yield from commands


def _wrapped(text: str, first: str, others: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 100) - 2
    return textwrap.wrap(text, max(width, 40), initial_indent=first, subsequent_indent=others)
