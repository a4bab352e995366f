"""The wire: round trip, versions, and refusals that name the field."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import (
    WIRE_MAJOR,
    WIRE_MINOR,
    Frame,
    MoeLayer,
    Placement,
    PlacementTable,
    Producer,
    StepLoads,
    UncoveredLayer,
    WireError,
    WireVersionError,
    decode_frame,
    encode_frame,
    pack_counts,
    pack_ids,
    pack_step_loads,
    unpack_counts,
    unpack_ids,
    unpack_step_loads,
)


def frame(**changes: Any) -> Frame:
    fields: dict[str, Any] = {
        "wire": (WIRE_MAJOR, WIRE_MINOR),
        "producer": Producer(server="a", model="m", dp_rank=1, dp_size=2, ep_rank=1, ep_size=2),
        "epoch": 10**18,
        "seq": 1,
        "captured_at_ns": 10**18,
        "layers": [MoeLayer(1, 4, 2), MoeLayer(3, 2, 1)],
        "uncovered": [UncoveredLayer(5, "monolithic kernel")],
        "counts": pack_counts(np.array([1, 2, 3, 4, 5, 0])),
        "rows": pack_counts(np.array([5, 5])),
        "tokens": 5,
        "steps": 2,
        "placement": Placement(
            version=0,
            tables=[
                PlacementTable(pack_ids([0, 1, 2, 3]), pack_ids([0, 0, 1, 1])),
                PlacementTable(pack_ids([0, 1, 1]), pack_ids([0, 0, 1])),
            ],
            table_of_layer=[0, 1],
        ),
        "drops": {"sends_failed": 3},
    }
    return Frame(**(fields | changes))


PHASES = {
    "decode_counts": pack_counts(np.array([1, 0, 3, 4, 5, 0])),
    "decode_rows": pack_counts(np.array([4, 5])),
    "decode_tokens": 4,
    "decode_steps": 1,
    "mixed_steps": 1,
}


def step_loads(**changes: Any) -> StepLoads:
    loads = np.array([[[3, 1], [2, 0]], [[0, 4], [1, 1]]])
    sent = pack_step_loads(10, 15, np.array([11, 14]), loads, version=0)
    return msgspec.structs.replace(sent, **changes)


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


def test_a_frame_of_an_older_minor_version_names_no_strategy() -> None:
    fields = msgspec.msgpack.decode(encode_frame(frame(wire=(WIRE_MAJOR, 0), strategy="kernel-per-step")))
    assert decode_frame(msgspec.msgpack.encode(fields)).strategy == "kernel-per-step"
    del fields["strategy"]
    assert decode_frame(msgspec.msgpack.encode(fields)).strategy == ""


def test_counts_survive_up_to_the_ends_of_int64() -> None:
    values = np.array([0, 2**53 + 1, 2**63 - 1])
    assert unpack_counts(pack_counts(values)).tolist() == values.tolist()


def test_ids_survive_and_too_large_ones_are_refused() -> None:
    assert unpack_ids(pack_ids([0, 65535])).tolist() == [0, 65535]
    with pytest.raises(ValueError, match=r"0\.\.65535, got -1\.\.3"):
        pack_ids([3, -1])


def test_a_newer_minor_version_with_new_fields_is_read() -> None:
    fields = msgspec.msgpack.decode(encode_frame(frame(wire=(WIRE_MAJOR, 99))))
    fields["news"] = {"from": "the future"}
    assert decode_frame(msgspec.msgpack.encode(fields)).wire == (WIRE_MAJOR, 99)


@pytest.mark.parametrize(
    ("major", "advice"), [(0, "vLLM's environment"), (WIRE_MAJOR + 1, "upgrade the service")]
)
def test_another_major_version_is_refused_whatever_else_it_holds(major: int, advice: str) -> None:
    body = msgspec.msgpack.encode({"wire": [major, 0], "unheard": "of"})
    with pytest.raises(
        WireVersionError, match=f"version {major}, this service reads version {WIRE_MAJOR}: .*{advice}"
    ):
        decode_frame(body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": b"\0" * 40}, r"counts: expected 48 bytes \(6 int64 values\), got 40"),
        ({"counts": pack_counts(np.array([1, 2, -3, 4, 5, 0]))}, r"counts: value 2 is negative \(-3\)"),
        ({"rows": b""}, "rows: expected 16 bytes"),
        ({"layers": [MoeLayer(3, 4, 2), MoeLayer(1, 2, 1)]}, r"layers: ids must rise strictly, got \[3, 1\]"),
        ({"layers": [MoeLayer(1, 4, 5), MoeLayer(3, 2, 1)]}, "layers: layer 1 has top_k 5 > 4"),
        ({"uncovered": [UncoveredLayer(3, "x")]}, r"uncovered: layers \[3\] are in layers too"),
        (
            {"producer": Producer(server="a", model="m", dp_rank=2, dp_size=2)},
            "producer.dp_rank: 2 is not below",
        ),
        ({"placement": Placement(version=0, tables=[], table_of_layer=[0, 0])}, "table_of_layer: no table 0"),
        (
            {"placement": Placement(version=0, tables=[], table_of_layer=[])},
            "table_of_layer: 0 entries for 2",
        ),
        ({**PHASES, "decode_counts": b"\0" * 40}, "decode_counts: expected 48 bytes"),
        ({**PHASES, "decode_rows": b""}, "decode_rows: expected 16 bytes"),
        (
            {**PHASES, "decode_rows": pack_counts(np.array([4, 6]))},
            "decode_rows: value 1 is above that of rows",
        ),
        ({**PHASES, "decode_tokens": 6}, r"decode_tokens: 6 is above tokens \(5\)"),
        ({**PHASES, "mixed_steps": 2}, r"decode_steps: 1 with mixed_steps 2 is above steps \(2\)"),
        ({"step_loads": step_loads(end=9)}, "step_loads.end: 9 is not within 65536 of first"),
        ({"step_loads": step_loads(end=10 + 65537)}, "step_loads.end: 65547 is not within"),
        ({"step_loads": step_loads(end=14)}, "step_loads.steps: must rise strictly and stay below 4"),
        ({"step_loads": step_loads(steps=b"\1\0\0\0" * 2)}, "step_loads.steps: must rise strictly"),
        ({"step_loads": step_loads(steps=b"\0" * 7)}, "step_loads.steps: 7 bytes are no uint32"),
        (
            {"step_loads": step_loads(loads=b"\0" * 7)},
            r"step_loads.loads: expected 8 bytes \(2 steps x 2 layers",
        ),
        ({"step_loads": step_loads(width=3)}, r"Invalid enum value 3 - at `\$.step_loads.width`"),
        ({"seq": 0}, r"Expected `int` >= 1 - at `\$.seq`"),
        ({"tokens": -1}, r"Expected `int` >= 0 - at `\$.tokens`"),
        ({"state": "asleep"}, r"Invalid enum value 'asleep' - at `\$.state`"),
        ({"drops": {f"r{i}": 1 for i in range(65)}}, r"length <= 64 - at `\$.drops`"),
    ],
)
def test_refusals_name_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode_frame(encode_frame(frame(**changes)))


@pytest.mark.parametrize(
    ("logical", "ep_ranks", "message"),
    [
        ([0, 1, 2], [0, 0, 1], "each of its 4 logical experts placed"),
        ([0, 1, 2, 3, 4], [0, 0, 0, 1, 1], "each of its 4 logical experts placed"),
        ([0, 1, 2, 3], [0, 0, 1, 2], "EP rank 2 is not below ep_size 2"),
        ([0, 1, 2, 3], [0, 0, 1], "two uint16 arrays of one length"),
        ([], [], "each of its 4 logical experts placed"),
    ],
)
def test_a_placement_must_place_every_expert(logical: list[int], ep_ranks: list[int], message: str) -> None:
    table = PlacementTable(pack_ids(logical), pack_ids(ep_ranks))
    layers = [MoeLayer(1, 4, 2)]
    sent = frame(
        layers=layers,
        counts=pack_counts(np.zeros(4, dtype=np.int64)),
        rows=pack_counts(np.zeros(1, dtype=np.int64)),
        placement=Placement(version=0, tables=[table], table_of_layer=[0]),
    )
    with pytest.raises(WireError, match=message):
        decode_frame(encode_frame(sent))


def test_layers_of_unlike_sizes_cannot_share_a_table() -> None:
    table = PlacementTable(pack_ids([0, 1, 2, 3]), pack_ids([0, 0, 1, 1]))
    layers = [MoeLayer(1, 4, 2), MoeLayer(2, 4, 2), MoeLayer(3, 5, 2)]
    sent = frame(
        layers=layers,
        counts=pack_counts(np.zeros(13, dtype=np.int64)),
        rows=pack_counts(np.zeros(3, dtype=np.int64)),
        placement=Placement(version=0, tables=[table], table_of_layer=[0, 0, 0]),
    )
    with pytest.raises(WireError, match=r"tables\[0\]: layer 3 needs each of its 5 logical experts"):
        decode_frame(encode_frame(sent))


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
