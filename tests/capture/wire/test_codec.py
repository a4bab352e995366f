"""Frames as bytes: round trip, other major versions, damaged bytes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import (
    WIRE_MAJOR,
    WireError,
    WireVersionError,
    decode_frame,
    encode_frame,
    pack_step_loads,
    unpack_counts,
    unpack_step_loads,
)
from tests.capture.wire.frames import PHASES, frame, step_loads


def test_a_frame_survives_the_wire() -> None:
    sent = frame(**PHASES, step_loads=step_loads())
    assert decode_frame(encode_frame(sent)) == sent


@pytest.mark.parametrize(
    ("most", "width"), [(0, 1), (255, 1), (256, 2), (65535, 2), (65536, 4), (2**32 - 1, 4)]
)
def test_loads_of_steps_take_the_smallest_width_and_come_back(most: int, width: int) -> None:
    loads = np.array([[[0, most]], [[1, 0]]])
    sent = pack_step_loads(2**40, 2**40 + 9, np.array([2**40, 2**40 + 8]), loads, version=3)
    assert sent.width == width
    assert len(sent.loads) == 4 * width
    steps, read = unpack_step_loads(sent, num_layers=1, ep_size=2)
    assert steps.tolist() == [2**40, 2**40 + 8]
    assert read.tolist() == loads.tolist()
    assert (read.itemsize, read.flags.writeable) == (width, False)  # as they came: nothing is copied


def test_a_load_that_fits_no_width_is_an_error_and_not_cut() -> None:
    with pytest.raises(OverflowError, match="4294967296"):
        pack_step_loads(0, 1, np.array([0]), np.array([[[2**32]]]), version=0)


@pytest.mark.parametrize(
    ("major", "advice"), [(0, "vLLM's environment"), (WIRE_MAJOR + 1, "upgrade the service")]
)
def test_another_major_version_is_refused_whatever_else_it_holds(major: int, advice: str) -> None:
    body = msgspec.msgpack.encode({"wire": [major, 0], "unheard": "of"})
    with pytest.raises(
        WireVersionError, match=f"version {major}, this service reads version {WIRE_MAJOR}: .*{advice}"
    ):
        decode_frame(body)


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode_frame(noise)


@given(cut=st.integers(0, 10_000))
def test_a_truncated_frame_is_refused(cut: int) -> None:
    body = encode_frame(frame())
    with pytest.raises(WireError):
        decode_frame(body[: cut % len(body)])


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_read_as_a_frame_that_fits_together(position: int, value: int) -> None:
    body = bytearray(encode_frame(frame()))
    body[position % len(body)] = value
    try:
        read = decode_frame(bytes(body))
    except WireError:
        return
    assert len(unpack_counts(read.counts)) == sum(layer.num_experts for layer in read.layers)
