"""The wire of traces: valid parts come back as they were, and errors name the field that is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from moescope.capture.wire import MoeLayer, Producer, WireError, WireVersionError
from moescope.capture.wire.traces import NO_EXPERT, Run, TakenOver, TracePart, decode_part, encode_part


def part(**fields: Any) -> TracePart:
    """Three tokens in layers of 8 and 200 experts, top-2 and top-1."""
    return TracePart(
        **{
            "wire": (1, 0),
            "producer": Producer(server="s", model="m", dp_rank=0, dp_size=1),
            "epoch": 5,
            "trace": 1,
            "part": 0,
            "parts": 1,
            "request_id": "r",
            "client_ids": [],
            "outcome": "ended",
            "prompt_tokens": 2,
            "cached_tokens": 0,
            "preemptions": 0,
            "started_at_ns": 1,
            "ended_at_ns": 2,
            "layers": [MoeLayer(1, 8, 2), MoeLayer(4, 200, 1)],
            "runs": [Run(0, 2), Run(7, 1)],
            "id_bytes": 1,
            "experts": [bytes([0, 1, 2, 3, 6, 7]), bytes([199, 0, 5])],
            **fields,
        }
    )


def test_a_part_comes_back() -> None:
    found = decode_part(encode_part(part()))
    assert found == part()
    assert found.tokens == 3
    np.testing.assert_array_equal(found.ids_of(0), [[0, 1], [2, 3], [6, 7]])
    assert found.ids_of(1).dtype == np.uint8


def test_what_a_cache_had_comes_back() -> None:
    taken = [TakenOver(0, 16, "a"), TakenOver(16, 16, "", "not_traced")]
    assert decode_part(encode_part(part(taken_over=taken))).taken_over == taken


def test_two_bytes_and_masked_slots() -> None:
    ids = np.array([[1, NO_EXPERT], [2, 3], [4, 5]], "<u2").tobytes()
    other = np.array([199, NO_EXPERT, 0], "<u2").tobytes()
    found = decode_part(encode_part(part(id_bytes=2, experts=[ids, other])))
    assert found.ids_of(0).tolist() == [[1, NO_EXPERT], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"part": 1}, "part: 1 is not below parts 1"),
        ({"taken_over": [TakenOver(0, 3, "a"), TakenOver(2, 1, "b")]}, "taken_over: positions must rise"),
        ({"taken_over": [TakenOver(4, 1, "a"), TakenOver(0, 1, "b")]}, "taken_over: positions must rise"),
        ({"layers": [MoeLayer(4, 8, 2), MoeLayer(1, 200, 1)]}, "layers: ids must rise"),
        ({"experts": [b"\0" * 6]}, "experts: 1 arrays for 2 layers"),
        ({"experts": [b"\0" * 5, b"\0" * 3]}, r"experts\[0\]: expected 6 bytes"),
        ({"experts": [bytes([0, 1, 2, 8, 6, 7]), b"\0" * 3]}, r"experts\[0\]: expert 8 in layer 1 of 8"),
        ({"runs": []}, "runs"),
        ({"runs": [Run(0, 4)]}, r"experts\[0\]: expected 8 bytes"),
        ({"id_bytes": 3}, "id_bytes"),
        ({"request_id": ""}, "request_id"),
        ({"client_ids": ["x"] * 9}, "client_ids"),
        ({"outcome": "lost"}, "outcome"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(WireError, match=named):
        decode_part(encode_part(part(**fields)))


def test_another_major_version() -> None:
    with pytest.raises(WireVersionError):
        decode_part(encode_part(part(wire=(2, 0))))


def test_unknown_fields_are_ignored() -> None:
    data = msgspec.msgpack.decode(encode_part(part()))
    assert decode_part(msgspec.msgpack.encode({**data, "later": [1]})) == part()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91" * 4000, b"{}"])
def test_rubbish(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_part(body)
