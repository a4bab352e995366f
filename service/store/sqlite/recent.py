"""Blocks of traces that were unpacked just now.

Short requests share a block, so whoever reads one after the other would unpack each block ten times.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.sqlite.segments import read_packed

MOST_BYTES: Final = 8 << 20
"""Bytes of all blocks that are held, packed and unpacked; a larger block is not held."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A block as it is stored, what was wanted of it, and what that is."""

    blob: bytes
    asked: tuple[object, ...]
    ids: list[ExpertArray]
    nbytes: int


class RecentBlocks:
    """Unpacks blocks, and holds the last ones; for all threads.

    A block is found by its bytes, not by its number, which may be another block's by now.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._held: list[_Held] = []
        self._lock = threading.Lock()

    def read(
        self,
        blob: bytes,
        layers: Sequence[MoeLayer],
        id_bytes: int,
        tokens: int,
        wanted: Collection[int] | None,
    ) -> list[ExpertArray]:
        """The ids of a block, which nobody may write to; see :func:`read_packed`, which has its errors."""
        asked = (tuple(layers), id_bytes, tokens, None if wanted is None else frozenset(wanted))
        with self._lock:
            found = next((each for each in self._held if each.asked == asked and each.blob == blob), None)
            if found is not None:
                self._held = [each for each in self._held if each is not found] + [found]
                return found.ids
        ids = read_packed(blob, layers, id_bytes, tokens, wanted)
        made = _Held(blob, asked, ids, len(blob) + sum(of_layer.nbytes for of_layer in ids))
        if made.nbytes <= self._most:
            with self._lock:
                self._held.append(made)
                while sum(each.nbytes for each in self._held) > self._most:
                    self._held.pop(0)
        return ids

    def forget(self) -> None:
        """Hold none of them."""
        with self._lock:
            self._held.clear()
