"""Blocks of traces that were unpacked just now.

Short requests share a block, so whoever reads one after the other would read and unpack each block ten times.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.sqlite.segments import read_packed
from moescope.service.store.worker_trace import side_by_side

MOST_BYTES: Final = 8 << 20
"""Bytes of all blocks that are held, packed and unpacked; a larger block is not held."""


class Place(NamedTuple):
    """Where a block is, as one connection sees it.

    Attributes:
        connection: which sees it.
        version: its ``PRAGMA data_version``: another one after any commit of others. This connection itself
            writes nothing.
        block: the block's number, which is another block's only after a commit.
    """

    connection: sqlite3.Connection
    version: int
    block: int


class Ids(NamedTuple):
    """The ids of a block, which nobody may write to.

    Attributes:
        of_layers: for each layer wanted [tokens, top_k].
        side_by_side: the same memory as [tokens, layers, top_k]; None: top-k differs, or there are none.
    """

    of_layers: list[ExpertArray]
    side_by_side: ExpertArray | None

    @property
    def tokens(self) -> int:
        """Of each layer, as many as there are of all of them."""
        return min(map(len, self.of_layers), default=0)

    @classmethod
    def of(cls, of_layers: list[ExpertArray]) -> Ids:
        """The ids of these layers, which are copied (once more the bytes, for as long as this takes)."""
        if len({ids.shape[1] for ids in of_layers}) != 1:
            return cls(of_layers, None)
        together = side_by_side(of_layers)
        together.flags.writeable = False
        return cls([together[:, at] for at in range(len(of_layers))], together)


@dataclass(frozen=True, slots=True)
class _Held:
    """A block as it is stored, where it was seen last, what was wanted of it, and what that is."""

    blob: bytes
    place: Place | None
    asked: tuple[object, ...]
    ids: Ids
    nbytes: int


class RecentBlocks:
    """Unpacks blocks, and holds the last ones; for all threads.

    A block is found by its place as long as nothing was committed; then by its bytes, since its number may be
    another block's by now.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._held: list[_Held] = []
        self._lock = threading.Lock()

    def read(
        self,
        load: Callable[[], bytes],
        layers: Sequence[MoeLayer],
        id_bytes: int,
        tokens: int,
        wanted: Collection[int] | None,
        place: Place | None = None,
    ) -> Ids:
        """The ids of a block.

        Args:
            load: reads the block as it is stored; called only if it isn't held for its place.
            layers, id_bytes, tokens, wanted: see :func:`read_packed`, which has the errors too.
            place: where it is; None: it isn't known.
        """
        asked = (tuple(layers), id_bytes, tokens, None if wanted is None else frozenset(wanted))
        found = None if place is None else self._again(lambda each: each.place == place, asked, place)
        if found is not None:
            return found
        blob = load()
        found = self._again(lambda each: each.blob == blob, asked, place)
        if found is not None:
            return found
        ids = Ids.of(read_packed(blob, layers, id_bytes, tokens, wanted))
        nbytes = len(blob) + sum(of_layer.nbytes for of_layer in ids.of_layers)
        made = _Held(blob, place, asked, ids, nbytes)
        if made.nbytes <= self._most:
            with self._lock:
                self._held.append(made)
                while sum(each.nbytes for each in self._held) > self._most:
                    self._held.pop(0)
        return ids

    def _again(
        self, is_it: Callable[[_Held], bool], asked: tuple[object, ...], place: Place | None
    ) -> Ids | None:
        """What is held of a block and was asked for, which is now the newest, and seen at a place."""
        with self._lock:
            for at, each in enumerate(self._held):
                if each.asked == asked and is_it(each):
                    del self._held[at]
                    self._held.append(replace(each, place=place or each.place))
                    return each.ids
        return None

    def forget(self) -> None:
        """Hold none of them."""
        with self._lock:
            self._held.clear()
