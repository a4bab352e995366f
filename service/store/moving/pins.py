"""Which word on a baseline is the newer one: that of a folder, or that of the ClickHouse it is moved to."""

from __future__ import annotations

from typing import Final

import msgspec

from moescope.service.store.records import Document

_BASELINE: Final = "baseline"


class _Pin(msgspec.Struct):
    """What of a baseline says when it was pinned, seconds of Unix time."""

    pinned_at: float


def is_newer(ours: Document, there: bytes, there_at: float) -> bool:
    """Whether a folder's document is a baseline that was pinned after the ClickHouse's word on it.

    Args:
        ours: the folder's.
        there: what the ClickHouse has; nothing: the word that it is gone.
        there_at: when it was written there, seconds of Unix time.
    """
    if ours.kind != _BASELINE:
        return False
    pinned_at = _pinned_at(ours.content or b"")
    if pinned_at is None:
        return False
    before = _pinned_at(there) if there else there_at
    return before is not None and before < pinned_at


def _pinned_at(content: bytes) -> float | None:
    """When a baseline was pinned; None: it can't be read."""
    try:
        return msgspec.msgpack.decode(content, type=_Pin).pinned_at
    except msgspec.MsgspecError:
        return None
