"""Draws docs/architecture.dot, light and dark, into docs/images: ``python -m devkit.architecture``.

Needs Graphviz (Debian's package graphviz).
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from typing import Final

from devkit.release.version import ROOT

SOURCE: Final = ROOT / "docs" / "architecture.dot"
PICTURES: Final = ROOT / "docs" / "images"
THEMES: Final = {
    "light": {
        "INK": "#1b1f24",
        "FAINT": "#6e7781",
        "PAPER": "#ffffff",
        "WORKER": "#e8f1fb",
        "SERVICE": "#eaf5ea",
    },
    "dark": {
        "INK": "#e6edf3",
        "FAINT": "#8b949e",
        "PAPER": "#161b22",
        "WORKER": "#12263f",
        "SERVICE": "#12301c",
    },
}


def mark(source: str) -> str:
    """What a picture says of the text that it was made of."""
    return f"<!-- of docs/architecture.dot, sha256 {hashlib.sha256(source.encode()).hexdigest()} -->"


def drawn(source: str, colours: dict[str, str]) -> str:
    """The picture as SVG."""
    for name, colour in colours.items():
        source = re.sub(rf"\b{name}\b(?=\")", colour, source)
    done = subprocess.run(["dot", "-Tsvg"], input=source, check=True, capture_output=True, text=True)
    # Fonts that are there: Helvetica is not on most machines.
    return done.stdout.replace('font-family="Helvetica"', 'font-family="Helvetica, Arial, sans-serif"')


def main() -> None:
    """Write both pictures."""
    source = SOURCE.read_text()
    for theme, colours in THEMES.items():
        path = PICTURES / f"architecture-{theme}.svg"
        path.write_text(f"{drawn(source, colours).rstrip()}\n{mark(source)}\n")
        print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == "__main__":
    main()
