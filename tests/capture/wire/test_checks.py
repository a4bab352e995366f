"""What the types of a frame can't say is checked, and refusals name the field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.capture.wire import (
    MoeLayer,
    Placement,
    PlacementTable,
    Producer,
    UncoveredLayer,
    WireError,
    decode_frame,
    encode_frame,
    pack_counts,
    pack_ids,
)
from moescope.capture.wire.checks import MAX_SPAN, check_frame
from tests.capture.wire.frames import BY_RANK, PHASES, frame, step_loads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": b"\0" * 40}, r"counts: expected 48 bytes \(6 int64 values\), got 40"),
        ({"counts": pack_counts(np.array([1, 2, -3, 4, 5, 0]))}, r"counts: value 2 is negative \(-3\)"),
        ({"rows": b""}, "rows: expected 16 bytes"),
        ({"seq": 4, "acknowledged": 4}, r"acknowledged: 4 is not below seq \(4\)"),
        ({"layers": [MoeLayer(3, 4, 2), MoeLayer(1, 2, 1)]}, r"layers: ids must rise strictly, got \[3, 1\]"),
        ({"layers": [MoeLayer(1, 4, 5), MoeLayer(3, 2, 1)]}, "layers: layer 1 has top_k 5 > 4"),
        ({"uncovered": [UncoveredLayer(3, "x")]}, r"uncovered: layers \[3\] are in layers too"),
        ({"absent": [UncoveredLayer(3, "x")]}, r"absent: layers \[3\] are in layers or uncovered too"),
        ({"absent": [UncoveredLayer(5, "x")]}, r"absent: layers \[5\] are in layers or uncovered too"),
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
        ({"step_loads": step_loads(microbatches=b"\0")}, "step_loads.microbatches: 1 for 2 steps"),
        ({"ep_slots": b"\0" * 8}, r"ep_slots: expected 32 bytes \(4 int64 values\), got 8"),
        (
            {"ep_slots": pack_counts(np.array([3, 7, 5, 1]))},
            "ep_slots: layer 3 has more slots by EP rank than it has slots",
        ),
        (
            {**BY_RANK, "decode_ep_slots": pack_counts(np.array([1, 8, 5, 0]))},
            "decode_ep_slots: layer 1 has more slots by EP rank",
        ),
        (
            {**BY_RANK, "decode_ep_slots": pack_counts(np.array([4, 4, 5, 0]))},
            "decode_ep_slots: value 0 is above that of ep_slots",
        ),
        ({**BY_RANK, "decode_ep_slots": b""}, "decode_ep_slots: goes with ep_slots and decode_counts"),
        ({**BY_RANK, "ep_slots": b""}, "decode_ep_slots: goes with ep_slots and decode_counts"),
        ({"step_loads": step_loads(width=3)}, r"Invalid enum value 3 - at `\$.step_loads.width`"),
        ({"seq": 0}, r"Expected `int` >= 1 - at `\$.seq`"),
        ({"tokens": -1}, r"Expected `int` >= 0 - at `\$.tokens`"),
        ({"state": "asleep"}, r"Invalid enum value 'asleep' - at `\$.state`"),
        ({"drops": {f"r{i}": 1 for i in range(65)}}, r"length <= 64 - at `\$.drops`"),
        (
            {"producer": Producer(server="a", model="m", dp_rank=0, dp_size=65536, tp_size=2)},
            "producer.dp_size: dp_size x tp_size x pp_size is 131072, above 65536",
        ),
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


@pytest.mark.parametrize("axis", ["dp", "tp", "pp", "ep"])
def test_a_rank_is_below_the_size_of_its_group(axis: str) -> None:
    who: dict[str, Any] = {"server": "a", "model": "m", "dp_rank": 0, "dp_size": 1, f"{axis}_rank": 3}
    with pytest.raises(WireError, match=f"producer.{axis}_rank: 3 is not below {axis}_size 1"):
        check_frame(frame(producer=Producer(**who), placement=None))


def test_what_fits_is_accepted() -> None:
    check_frame(frame())
    halves = np.array([3, 3], "<u4").tobytes()
    check_frame(frame(step_loads=step_loads(steps=halves, microbatches=b"\0\1")))
    check_frame(frame(placement=None, **PHASES))
    check_frame(frame(step_loads=step_loads(end=10 + MAX_SPAN)))
    nothing = pack_counts(np.zeros(0, np.int64))
    check_frame(frame(layers=[], uncovered=[], counts=nothing, rows=nothing, placement=None))


def test_a_step_has_its_microbatches_in_order() -> None:
    halves = np.array([3, 3], "<u4").tobytes()
    for wrong in (b"\0\0", b"\1\0", b""):
        with pytest.raises(WireError, match=r"step_loads.steps: must rise strictly"):
            check_frame(frame(step_loads=step_loads(steps=halves, microbatches=wrong)))


def test_entries_of_steps_are_bounded_where_steps_are_split() -> None:
    """65,536 steps of 64 microbatches, 25 MB, took 10 s of the service's lock."""
    entries = MAX_SPAN + 1
    steps = (np.arange(entries) // 2).astype("<u4").tobytes()
    parts = (np.arange(entries) % 2).astype(np.uint8).tobytes()
    with pytest.raises(WireError, match=rf"step_loads.steps: {entries} entries, above {MAX_SPAN}"):
        check_frame(frame(step_loads=step_loads(end=10 + MAX_SPAN, steps=steps, microbatches=parts)))


@pytest.mark.parametrize("axis", ["dp", "ep"])
@pytest.mark.parametrize("where", ["layers", "uncovered", "absent"])
def test_cells_of_layers_and_ranks_have_a_bound_whatever_the_frame_says_of_the_layers(
    axis: str, where: str
) -> None:
    """A frame of 22 KB with 1,024 layers and ep_size 65,536 made one answer of 269 MB."""
    numbers = range(1024)
    none: dict[str, Any] = {"layers": [], "counts": b"", "rows": b"", "uncovered": [], "absent": []}
    none["placement"] = None
    layers = [MoeLayer(i, 1, 1) for i in numbers]
    changes: dict[str, Any] = {
        "layers": {**none, "layers": layers, "counts": bytes(8192), "rows": bytes(8192)},
        "uncovered": {**none, "uncovered": [UncoveredLayer(i, "x") for i in numbers]},
        "absent": {**none, "absent": [UncoveredLayer(i, "x") for i in numbers]},
    }[where]

    def of(size: int) -> bytes:
        sizes: dict[str, Any] = {"dp_size": 1, f"{axis}_size": size}
        return encode_frame(frame(producer=Producer(server="a", model="m", dp_rank=0, **sizes), **changes))

    decode_frame(of(256))
    with pytest.raises(WireError, match=f"producer.{axis}_size: 257 x 1024 layers is above 262144"):
        decode_frame(of(257))


def _placed(copies: int, layers: int, experts: int, ep_size: int) -> bytes:
    """A frame of layers that share a table with so many physical experts."""
    physical = np.arange(copies)
    table = PlacementTable(pack_ids(physical % experts), pack_ids(physical % ep_size))
    return encode_frame(
        frame(
            producer=Producer(server="a", model="m", dp_rank=0, dp_size=1, ep_size=ep_size),
            layers=[MoeLayer(i, experts, 1) for i in range(layers)],
            counts=bytes(8 * layers * experts),
            rows=bytes(8 * layers),
            uncovered=[],
            placement=Placement(version=1, tables=[table], table_of_layer=[0] * layers),
        )
    )


def test_physical_experts_are_bounded_by_the_shape_and_over_all_layers() -> None:
    """512 layers of 2 experts that shared a table of 2,000,000 copies took 18 s and 8 GiB."""
    decode_frame(_placed(copies=256, layers=512, experts=2, ep_size=2))
    with pytest.raises(WireError, match=r"tables\[0\]: 257 physical experts, above 256"):
        decode_frame(_placed(copies=257, layers=512, experts=2, ep_size=2))
    decode_frame(_placed(copies=512, layers=4, experts=16, ep_size=16))
    with pytest.raises(WireError, match=r"tables\[0\]: 513 physical experts, above 512"):
        decode_frame(_placed(copies=513, layers=4, experts=16, ep_size=16))
    with pytest.raises(WireError, match="placement: 1049600 physical experts over all layers, above 1048576"):
        decode_frame(_placed(copies=2050, layers=512, experts=64, ep_size=64))
