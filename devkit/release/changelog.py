"""CHANGELOG.md in the form of Keep a Changelog: versions, newest first, and below each kinds of changes."""

from __future__ import annotations

import re
from typing import Final

KINDS: Final = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
UNRELEASED: Final = "## [Unreleased]"
_SHORT: Final = 60
"""Characters: shorter first lines may be alike by chance."""
_VERSION: Final = re.compile(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}")


def complaints(text: str) -> list[str]:
    """What is not in that form, a line each with its number."""
    found: list[str] = []
    kind = version = False
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("- ") and not version:
            found.append(f"{number}: stands above all versions, so no release has it: {line[:60]!r}")
        elif line.startswith("- ") and len(line) > _SHORT and line in lines[: number - 1]:
            found.append(f"{number}: is said twice: {line[:60]!r}")
        if line.startswith("## "):
            version, kind = True, False
            if line != UNRELEASED and not _VERSION.fullmatch(line):
                found.append(f"{number}: {line!r} is neither {UNRELEASED!r} nor '## [1.2.0] - 2026-01-31'")
        elif line.startswith("### "):
            kind = True
            if line.removeprefix("### ") not in KINDS:
                found.append(f"{number}: {line!r} is none of {', '.join(KINDS)}")
        elif version and not kind and line.strip():
            found.append(f"{number}: stands below no kind of change ({', '.join(KINDS)}): {line[:60]!r}")
    return found


def unreleased(text: str) -> str:
    """What is said of the next version."""
    return text.partition(f"\n{UNRELEASED}\n")[2].partition("\n## ")[0].strip()


def released(text: str, version: str, date: str) -> str:
    """The text with what was unreleased under its version, and an empty part for the next.

    Args:
        date: of the release, as 2026-01-31.

    Raises:
        ValueError: nothing is unreleased, or the version is there already.
    """
    if not unreleased(text):
        raise ValueError(f"CHANGELOG.md has nothing under {UNRELEASED!r}")
    if f"\n## [{version}]" in text:
        raise ValueError(f"CHANGELOG.md has {version} already")
    return text.replace(f"\n{UNRELEASED}\n", f"\n{UNRELEASED}\n\n## [{version}] - {date}\n", 1)
