"""Arrays on the wire as raw little-endian bytes, and the errors of messages that can't be read."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt16Array = npt.NDArray[np.uint16]
LoadArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

COUNTS_DTYPE: Final = np.dtype("<i8")
IDS_DTYPE: Final = np.dtype("<u2")


class WireError(ValueError):
    """A frame or a part of a trace that can't be read; the message names the field and what was expected."""


class WireVersionError(WireError):
    """A frame or a part of a trace of another major version; the message names both versions."""

    def __init__(self, what: str, got: int, read: int) -> None:
        self.got = got
        advice = "upgrade the service" if got > read else "upgrade moescope in vLLM's environment"
        super().__init__(f"the {what} has wire version {got}, this service reads version {read}: {advice}")


def pack_counts(values: Int64Array) -> bytes:
    """int64 array of any shape to raw little-endian bytes, in C order."""
    return values.astype(COUNTS_DTYPE, copy=False).tobytes()


def unpack_counts(data: bytes) -> Int64Array:
    """Raw little-endian bytes to a read-only int64 array of shape [len(data) // 8]."""
    return np.frombuffer(data, dtype=COUNTS_DTYPE)


def pack_ids(values: npt.ArrayLike) -> bytes:
    """Ids below 65,536 to raw little-endian uint16 bytes.

    Raises:
        ValueError: an id is negative or does not fit.
    """
    array = np.asarray(values, dtype=np.int64)
    if array.size and (int(array.min()) < 0 or int(array.max()) > 0xFFFF):
        raise ValueError(f"ids must be in 0..65535, got {int(array.min())}..{int(array.max())}")
    return array.astype(IDS_DTYPE).tobytes()


def unpack_ids(data: bytes) -> UInt16Array:
    """Raw little-endian bytes to a read-only uint16 array of shape [len(data) // 2]."""
    return np.frombuffer(data, dtype=IDS_DTYPE)
