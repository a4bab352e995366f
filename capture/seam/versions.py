"""Which releases of vLLM moescope was tested with, and which one is installed.

Nothing is decided by the version: `features` looks for each thing by itself. The list is for the log.
"""

from __future__ import annotations

import importlib.metadata
from typing import Final

TESTED: Final = tuple((0, minor) for minor in range(23, 34))
"""The release series (major, minor) that pass in docs/versions.md."""


def vllm_version() -> str:
    """The installed vLLM's version, such as ``0.32.0+cpu``."""
    from vllm.version import __version__

    return str(__version__)


def moescope_version() -> str:
    """The installed moescope's version; empty when it runs from a source tree that isn't installed."""
    try:
        return importlib.metadata.version("moescope")
    except importlib.metadata.PackageNotFoundError:
        return ""


def series(version: str) -> tuple[int, int] | None:
    """The release series of a version: (0, 32) for ``0.32.0+cpu``; None for one that names no release."""
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return None


def why_untested() -> str | None:
    """A warning that moescope was not tested with the installed vLLM, or None."""
    version = vllm_version()
    if series(version) in TESTED:
        return None
    first, last = (".".join(map(str, found)) for found in (TESTED[0], TESTED[-1]))
    return f"not tested with vLLM {version} (tested: {first} to {last})"
