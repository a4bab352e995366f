"""How much memory this process may take, and how much of it is for the past."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from moescope.service.live.history import History
from moescope.service.settings import Settings

_HISTORY_BYTES: Final = 256 << 20
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""A container's limit, by the second and by the first version of control groups."""


def available_bytes(limits: Iterable[Path] = _LIMITS) -> int:
    """The machine's memory, or a container's limit where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(path.read_text()))
    return min(found)


def history_of(settings: Settings, keeps: bool) -> History:
    """Memory for the past; what a store keeps is in memory for speed only.

    Args:
        settings: how much, if it says so.
        keeps: there is a store.
    """
    if settings.history_mib is not None:
        return History(settings.history_mib << 20)
    return History(_HISTORY_BYTES, None if keeps else available_bytes() // 4)
