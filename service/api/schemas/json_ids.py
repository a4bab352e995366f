"""Ids of experts as JSON, without making a Python number of each."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from moescope.service.traces.routing import ExpertRows

_SHORT: Final = 1000  # ids below it take four bytes with their comma


def json_ids(experts: ExpertRows) -> bytes:
    """The ids [n, L, K], -1 or more, as lists of lists: the bytes that ``msgspec.json.encode`` makes.

    Each id is looked up in a table of texts of one width, and the spaces are taken out at the end. That takes
    32 bytes an id while it runs, and 8 a list.
    """
    if not experts.size:
        return msgspec.json.encode(experts.tolist())
    table = _texts(4 if experts.max() < _SHORT else 8)
    positions, layers, top_k = experts.shape
    width = table.itemsize
    # An id ends with a comma. A list begins with a bracket, and has a place for the comma behind it.
    cells = np.empty((positions, layers, top_k * width + 2), np.uint8)
    cells[:, :, 0] = ord("[")
    cells[:, :, 1:-1] = table[experts.astype(np.int64, order="C") + 1].view(np.uint8)
    cells[:, :, -2] = ord("]")
    cells[:, :, -1] = ord(",")
    rows = np.empty((positions, layers * cells.shape[2] + 2), np.uint8)
    rows[:, 0] = ord("[")
    rows[:, 1:-1] = cells.reshape(positions, -1)
    rows[:, -2] = ord("]")
    rows[:, -1] = ord(",")
    return b"[" + rows.tobytes()[:-1].translate(None, b" ") + b"]"


@lru_cache(maxsize=2)
def _texts(width: int) -> npt.NDArray[Any]:
    """For -1, 0, 1, ... the text with a comma behind it, of so many bytes: below 1,000, or all of 16 bits."""
    numbers = range(-1, _SHORT if width == 4 else 1 << 16)
    texts = b"".join(f"{number},".rjust(width).encode() for number in numbers)
    return np.frombuffer(texts, f"<u{width}")
