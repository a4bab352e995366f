"""What capture relies on in each release series of vLLM: a row for each supported one."""

from __future__ import annotations

import importlib.metadata
from typing import Final, NamedTuple


class SeamRow(NamedTuple):
    """What one vLLM release series has of the things the capturer meets."""

    capture_sources: bool
    """`RoutedExpertsCaptureSource`: modules that route by themselves, without a `MoERunner`."""
    routing_sinks: bool
    """`RoutedExpertsSink`: a monolithic kernel may write the ids that it routes to."""


SUPPORTED: Final[dict[tuple[int, int], SeamRow]] = {
    (0, 26): SeamRow(capture_sources=False, routing_sinks=False),
    (0, 32): SeamRow(capture_sources=True, routing_sinks=True),
}


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


def seam_row(version: str) -> SeamRow | None:
    """The row of a version's release series, or None for a series that moescope was not tested with."""
    parts = version.split(".")
    try:
        return SUPPORTED.get((int(parts[0]), int(parts[1])))
    except (IndexError, ValueError):
        return None


def installed_row() -> SeamRow | None:
    """The row of the installed vLLM's release series, or None for one that moescope was not tested with."""
    return seam_row(vllm_version())


def why_untested() -> str | None:
    """A warning that moescope was not tested with the installed vLLM, or None."""
    if installed_row() is not None:
        return None
    tested = ", ".join(f"{major}.{minor}" for major, minor in sorted(SUPPORTED))
    return f"not tested with vLLM {vllm_version()} (tested: {tested})"
