"""Frames as bytes and back, and where they are sent.

A frame is msgpack, sent as the body of ``POST /v1/ingest`` with the content type
``CONTENT_TYPE`` of :mod:`moescope.capture.protocol`.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from moescope.capture.protocol import WIRE_MAJOR
from moescope.capture.wire.arrays import Int64Array, LoadArray, WireError, WireVersionError
from moescope.capture.wire.checks import check_frame
from moescope.capture.wire.schema import MAX_MICROBATCHES, Frame, StepLoads

T = TypeVar("T")


class _Envelope(Struct):
    """Just enough of a message, of whatever version, to read its version."""

    wire: tuple[int, int]


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_frame_decoder = msgspec.msgpack.Decoder(Frame)


def pack_step_loads(
    first: int,
    end: int,
    steps: Int64Array,
    loads: Int64Array,
    version: int,
    microbatches: Int64Array | None = None,
) -> StepLoads:
    """Loads of steps in ``[first, end)``.

    Args:
        first, end: the steps accounted for.
        steps: [n], rising: those that computed tokens.
        loads: [n, L, R], their slots by layer and EP rank, none negative.
        version: of the placement.
        microbatches: [n], which microbatch of its step each entry is; None: no step is split.

    Raises:
        OverflowError: a load is above 2**32 - 1, or a microbatch's number above 255.
    """
    parts = np.zeros(0, np.int64) if microbatches is None or not microbatches.any() else microbatches
    if int(parts.max(initial=0)) >= MAX_MICROBATCHES:
        raise OverflowError(f"a microbatch's number of {int(parts.max())} does not fit")
    most = int(loads.max(initial=0))
    if most > 0xFFFFFFFF:
        raise OverflowError(f"a step's load of {most} does not fit")
    width: Literal[1, 2, 4] = 1 if most <= 0xFF else 2 if most <= 0xFFFF else 4
    return StepLoads(
        first=first,
        end=end,
        steps=(steps - first).astype("<u4").tobytes(),
        width=width,
        loads=loads.astype(f"<u{width}").tobytes(),
        placement_version=version,
        microbatches=parts.astype(np.uint8).tobytes(),
    )


def unpack_step_loads(step_loads: StepLoads, num_layers: int, ep_size: int) -> tuple[Int64Array, LoadArray]:
    """The steps' numbers, int64 [n], and their loads as they came: read-only [n, num_layers, ep_size].

    Loads keep the unsigned type of ``step_loads.width`` bytes. Sums and differences need a wider type.
    """
    steps = np.frombuffer(step_loads.steps, dtype="<u4").astype(np.int64) + step_loads.first
    loads = np.frombuffer(step_loads.loads, dtype=f"<u{step_loads.width}")
    return steps, loads.reshape(len(steps), num_layers, ep_size)


def unpack_microbatches(step_loads: StepLoads) -> Int64Array:
    """Which microbatch of its step each of the n entries is, int64 [n]; zeros where no step is split."""
    if not step_loads.microbatches:
        return np.zeros(len(step_loads.steps) // 4, np.int64)
    return np.frombuffer(step_loads.microbatches, np.uint8).astype(np.int64)


def encode_frame(frame: Frame) -> bytes:
    """The frame as msgpack."""
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """Msgpack to a frame whose parts fit together (see :mod:`.checks`).

    Raises:
        WireVersionError: another major version.
        WireError: not msgpack, or a field that is missing, of the wrong type or out of range.
    """
    frame = decode_versioned(data, _frame_decoder, WIRE_MAJOR, "frame")
    check_frame(frame)
    return frame


def decode_versioned(data: bytes, decoder: msgspec.msgpack.Decoder[T], major: int, what: str) -> T:
    """Msgpack to a struct with a field ``wire``, of this major version; `what` names it in errors.

    Raises:
        WireVersionError: another major version.
        WireError: not msgpack, or a field that is missing, of the wrong type or out of range.
    """
    try:
        envelope = _envelope_decoder.decode(data)
        if envelope.wire[0] != major:
            raise WireVersionError(what, envelope.wire[0], major)
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a {what} of wire version {major}: {error}") from error
