"""The schema of frames: what older and newer producers leave out and add, and who a producer is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from moescope.capture import wire
from moescope.capture.wire import WIRE_MAJOR, Producer, WireError, decode_frame, encode_frame
from tests.capture.wire.frames import frame

NAMES = """
CONTENT_TYPE MAX_COUNTERS MAX_EXPERTS MAX_LAYERS MAX_RANKS WIRE_MAJOR WIRE_MINOR
Count Int64Array LayerId Name Positive Rank Size Text UInt16Array
Frame MoeLayer Placement PlacementTable Producer StepLoads UncoveredLayer WireError WireVersionError
check_frame decode_frame decode_versioned encode_frame pack_counts pack_ids pack_step_loads
unpack_counts unpack_ids unpack_step_loads
"""


def test_a_frame_of_an_older_minor_version_names_no_strategy() -> None:
    fields = msgspec.msgpack.decode(encode_frame(frame(wire=(WIRE_MAJOR, 0), strategy="kernel-per-step")))
    assert decode_frame(msgspec.msgpack.encode(fields)).strategy == "kernel-per-step"
    del fields["strategy"]
    assert decode_frame(msgspec.msgpack.encode(fields)).strategy == ""


def test_a_newer_minor_version_with_new_fields_is_read() -> None:
    fields = msgspec.msgpack.decode(encode_frame(frame(wire=(WIRE_MAJOR, 99))))
    fields["news"] = {"from": "the future"}
    assert decode_frame(msgspec.msgpack.encode(fields)).wire == (WIRE_MAJOR, 99)


@pytest.mark.parametrize("field", ["tokens", "epoch", "producer", "counts"])
def test_a_field_without_a_default_must_be_there(field: str) -> None:
    fields = msgspec.msgpack.decode(encode_frame(frame()))
    del fields[field]
    with pytest.raises(WireError, match=f"missing required field `{field}`"):
        decode_frame(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({"pid": 2}, False),
        ({"host": "b"}, False),
        ({"vllm_version": "0.32.0"}, False),
        ({"server": "b"}, True),
        ({"model": "n"}, True),
        ({"dp_rank": 0}, True),
        ({"tp_rank": 1}, True),
        ({"pp_rank": 1}, True),
    ],
)
def test_a_producer_is_the_same_over_restarts(change: dict[str, Any], is_another: bool) -> None:
    who = Producer(server="a", model="m", dp_rank=1, dp_size=2, tp_size=2, pp_size=2, host="a", pid=1)
    assert (msgspec.structs.replace(who, **change).key != who.key) is is_another


def test_the_folder_offers_what_the_service_and_other_producers_import() -> None:
    assert set(NAMES.split()) <= set(wire.__all__)
    assert all(hasattr(wire, name) for name in wire.__all__)
