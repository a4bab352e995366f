"""Copying many texts of one size to where they belong in a buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def scatter(
    buffer: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], texts: npt.NDArray[Any], size: int
) -> None:
    """Copy texts of one size into a buffer.

    Args:
        buffer: [M], contiguous; written to.
        starts: [N], where each text goes. Texts must not overlap: numpy promises no order.
        texts: [N, ...], contiguous; each begins with a text.
        size: bytes of each text.

    Raises:
        IndexError: a text would not end within the buffer.
    """
    # Every stretch of this size is one item, so that a text moves in one piece and not byte by byte.
    item = f"V{size}"
    stretches = np.ndarray((max(0, len(buffer) - size + 1),), item, buffer, strides=(1,))
    stretches[starts] = np.ndarray((len(texts),), item, texts, strides=texts.strides[:1])
