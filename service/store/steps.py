"""The steps that computed the tokens of a part, as every engine keeps them.

A request's tokens come in runs: those of a prefill chunk have one step, those of a decode have steps that
follow each other. So what is kept is how far each token's step is from that of the token before it (from 0,
of the first), as runs: msgpack of d1, n1, d2, n2, ..., n tokens each.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from moescope.capture.wire import Int64Array

OBJECT_BYTES: Final = 40
"""The most memory that a byte of stored steps takes while they are read: an integer and its place."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[int])


def encode_steps(steps: bytes) -> bytes | None:
    """Steps as ``TracePart`` has them, for the store; None: the worker told none."""
    if not steps:
        return None
    numbers = np.frombuffer(steps, "<i8")
    far = np.empty(len(numbers), np.int64)
    far[0] = numbers[0]
    np.subtract(numbers[1:], numbers[:-1], out=far[1:])
    begins = np.flatnonzero(far[1:] != far[:-1]) + 1
    runs = np.empty((len(begins) + 1, 2), np.int64)
    runs[0, 0], runs[1:, 0] = far[0], far[begins]
    ends = np.append(begins, len(far))
    runs[0, 1], runs[1:, 1] = ends[0], np.diff(ends)
    return _encoder.encode(runs.ravel().tolist())


def read_steps(stored: Any, tokens: int, start: int, end: int) -> Int64Array:
    """The steps of tokens ``start`` to before ``end`` of a part of so many, int64 [n]; -1: not known.

    Raises:
        ValueError: what is stored is damaged, or not of so many tokens.
    """
    if stored is None or stored == b"":
        return np.full(end - start, -1, np.int64)
    try:
        runs = np.array(_decoder.decode(stored), np.int64).reshape(-1, 2)
    except (TypeError, OverflowError, ValueError) as error:  # a DecodeError is a ValueError
        raise ValueError(f"damaged steps of a trace: {error}") from error
    far, counts = runs.T
    ends = np.cumsum(counts)
    if int(counts.min(initial=1)) < 1 or (int(ends[-1]) if len(ends) else 0) != tokens:
        raise ValueError(f"damaged steps of a trace: not those of {tokens} tokens")
    before = np.cumsum(far * counts) - far * counts
    places = np.arange(start, end)
    of_run = np.searchsorted(ends, places, "right")
    found: Int64Array = before[of_run] + far[of_run] * (places - (ends - counts)[of_run] + 1)
    if int(found.min(initial=0)) < 0:
        raise ValueError("damaged steps of a trace: a number below 0")
    return found
