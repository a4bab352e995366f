"""The wire between the capturer and the service: the only schema, versioned.

A frame is msgpack, sent as the body of ``POST /v1/ingest`` with the content type :data:`CONTENT_TYPE`.
It carries *cumulative* totals since the start of the producer's epoch, identified by
``(producer, epoch, seq)``: a lost, late, doubled or reordered frame costs resolution, never counts,
and a restarted producer begins a new epoch.

Compatibility: within a major version fields are only ever added, with defaults, and readers ignore
fields they don't know. A change that breaks this rule raises :data:`WIRE_MAJOR`.

This module imports neither torch nor vLLM nor FastAPI.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

WIRE_MAJOR: Final = 1
WIRE_MINOR: Final = 2
CONTENT_TYPE: Final = "application/vnd.moescope.frame+msgpack"

# Far above every model and cluster known; they bound what one frame can make the service allocate.
MAX_LAYERS: Final = 1024
MAX_EXPERTS: Final = 8192
MAX_RANKS: Final = 65536
MAX_COUNTERS: Final = 64

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Rank = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
Size = Annotated[int, Meta(ge=1, le=MAX_RANKS)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=1024)]
LayerId = Annotated[int, Meta(ge=0, lt=1 << 20)]

T = TypeVar("T")
Int64Array = npt.NDArray[np.int64]
UInt16Array = npt.NDArray[np.uint16]

_COUNTS_DTYPE: Final = np.dtype("<i8")
_IDS_DTYPE: Final = np.dtype("<u2")


class WireError(ValueError):
    """A frame that can't be understood; the message names the field and what was expected of it."""


class WireVersionError(WireError):
    """A frame of another major version; the message names both versions."""

    def __init__(self, what: str, got: int, read: int) -> None:
        self.got = got
        advice = "upgrade the service" if got > read else "upgrade moescope in vLLM's environment"
        super().__init__(f"the {what} has wire version {got}, this service reads version {read}: {advice}")


class Producer(Struct, frozen=True, kw_only=True):
    """Who counted: one vLLM worker process.

    ``server`` names the vLLM deployment (all its workers share it) and, with the model and the ranks,
    identifies the producer over restarts.
    """

    server: Name
    model: Name
    dp_rank: Rank
    dp_size: Size
    tp_rank: Rank = 0
    tp_size: Size = 1
    pp_rank: Rank = 0
    pp_size: Size = 1
    ep_rank: Rank = 0
    ep_size: Size = 1
    host: Text = ""
    pid: Count = 0
    vllm_version: Text = ""
    moescope_version: Text = ""

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What stays the same over restarts: (server, model, dp_rank, pp_rank, tp_rank)."""
        return (self.server, self.model, self.dp_rank, self.pp_rank, self.tp_rank)


class MoeLayer(Struct, frozen=True, array_like=True):
    """An MoE layer that this producer counts.

    ``layer`` is the decoder layer's index as in the model's config, not an ordinal among MoE layers.
    """

    layer: LayerId
    num_experts: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    top_k: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]


class UncoveredLayer(Struct, frozen=True, array_like=True):
    """An MoE layer whose routing can't be seen, and why. It has no counts, rather than zeros."""

    layer: LayerId
    reason: Text


class PlacementTable(Struct, frozen=True, array_like=True):
    """Where one layer's physical experts are, as raw little-endian uint16 arrays of one length P.

    ``physical_to_logical[p]`` is the logical expert that physical expert ``p`` is a copy of, and
    ``physical_to_ep_rank[p]`` the EP rank whose GPU holds it. Without redundant experts P is the
    number of logical experts, each of which appears once.
    """

    physical_to_logical: bytes
    physical_to_ep_rank: bytes


class Placement(Struct, frozen=True, kw_only=True):
    """Logical expert to EP ranks, for every layer of the frame.

    ``version`` rises with each rearrangement. ``table_of_layer[i]`` indexes ``tables`` for
    ``Frame.layers[i]``, so that layers placed alike share one table.
    """

    version: Count
    tables: Annotated[list[PlacementTable], Meta(max_length=MAX_LAYERS)]
    table_of_layer: Annotated[list[Count], Meta(max_length=MAX_LAYERS)]


class Frame(Struct, kw_only=True):
    """One cumulative snapshot of a producer.

    Attributes:
        wire: (major, minor) version of this schema.
        producer: who counted.
        epoch: start of the producer's counting, nanoseconds of Unix time; a restart has a higher one.
        seq: 1, 2, ... within the epoch; every later frame carries totals that are no smaller.
        captured_at_ns: when the totals were true, nanoseconds of Unix time on the producer's clock.
        state: ``counting``, or ``disabled`` when capture has stopped for good (``state_reason`` says why;
            the totals are then those of the moment before).
        layers: the covered MoE layers, in rising order of ``layer``.
        uncovered: the MoE layers whose routing can't be seen.
        counts: slots per (layer, logical expert), raw little-endian int64, the layers of ``layers``
            one after the other, ``num_experts`` values each.
        rows: tokens this producer counted in each layer, raw little-endian int64, one value a layer.
            A layer's counts sum to ``rows * top_k``, unless the router masked slots.
        tokens: tokens that this DP rank computed (the same on all its TP and PP workers).
        steps: steps in which this DP rank computed at least one token.
        idle_steps: dummy steps, run because another DP rank had work.
        placement: where the experts are, or None when it isn't known.
        strategy: how routing calls become counts, such as ``kernel-per-step``; empty from wire minor 0.
        drops: what this producer lost or put off, by reason, cumulative; never counts of tokens.
        traces: routing traces ``captured``, ``delivered`` and ``dropped_<reason>``, cumulative; the others
            are in flight. Empty where none are asked for, and from wire minor 1.
    """

    wire: tuple[int, int]
    producer: Producer
    epoch: Annotated[int, Meta(ge=1)]
    seq: Annotated[int, Meta(ge=1)]
    captured_at_ns: Count
    state: Literal["counting", "disabled"] = "counting"
    state_reason: Text = ""
    layers: Annotated[list[MoeLayer], Meta(max_length=MAX_LAYERS)]
    uncovered: Annotated[list[UncoveredLayer], Meta(max_length=MAX_LAYERS)] = []
    counts: bytes
    rows: bytes
    tokens: Count
    steps: Count
    idle_steps: Count = 0
    placement: Placement | None = None
    strategy: Text = ""
    drops: Annotated[dict[Name, Count], Meta(max_length=MAX_COUNTERS)] = {}
    traces: Annotated[dict[Name, Count], Meta(max_length=MAX_COUNTERS)] = {}


class _Envelope(Struct):
    """Just enough of a message, of whatever version, to read its version."""

    wire: tuple[int, int]


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_frame_decoder = msgspec.msgpack.Decoder(Frame)


def pack_counts(values: Int64Array) -> bytes:
    """int64 array of any shape to raw little-endian bytes, in C order."""
    return values.astype(_COUNTS_DTYPE, copy=False).tobytes()


def unpack_counts(data: bytes) -> Int64Array:
    """Raw little-endian bytes to a read-only int64 array of shape [len(data) // 8]."""
    return np.frombuffer(data, dtype=_COUNTS_DTYPE)


def pack_ids(values: npt.ArrayLike) -> bytes:
    """Ids below 65,536 to raw little-endian uint16 bytes.

    Raises:
        ValueError: an id is negative or does not fit.
    """
    array = np.asarray(values, dtype=np.int64)
    if array.size and (int(array.min()) < 0 or int(array.max()) > 0xFFFF):
        raise ValueError(f"ids must be in 0..65535, got {int(array.min())}..{int(array.max())}")
    return array.astype(_IDS_DTYPE).tobytes()


def unpack_ids(data: bytes) -> UInt16Array:
    """Raw little-endian bytes to a read-only uint16 array of shape [len(data) // 2]."""
    return np.frombuffer(data, dtype=_IDS_DTYPE)


def encode_frame(frame: Frame) -> bytes:
    """The frame as msgpack."""
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """Msgpack to a frame whose parts fit together (see :func:`check_frame`).

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


def check_frame(frame: Frame) -> None:
    """Check what the types alone can't say: array lengths, signs, order, ranks, placement.

    Raises:
        WireError: names the field, what it holds and what was expected.
    """
    _check_ranks(frame.producer)
    layer_ids = [layer.layer for layer in frame.layers]
    if any(a >= b for a, b in itertools.pairwise(layer_ids)):
        raise WireError(f"layers: ids must rise strictly, got {layer_ids}")
    for layer in frame.layers:
        if layer.top_k > layer.num_experts:
            raise WireError(
                f"layers: layer {layer.layer} has top_k {layer.top_k} > {layer.num_experts} experts"
            )
    both = set(layer_ids) & {layer.layer for layer in frame.uncovered}
    if both:
        raise WireError(f"uncovered: layers {sorted(both)} are in layers too")
    _check_array("counts", frame.counts, sum(layer.num_experts for layer in frame.layers))
    _check_array("rows", frame.rows, len(frame.layers))
    if frame.placement is not None:
        _check_placement(frame.placement, frame.layers, frame.producer.ep_size)


def _check_ranks(producer: Producer) -> None:
    for axis, rank, size in (
        ("dp", producer.dp_rank, producer.dp_size),
        ("tp", producer.tp_rank, producer.tp_size),
        ("pp", producer.pp_rank, producer.pp_size),
        ("ep", producer.ep_rank, producer.ep_size),
    ):
        if rank >= size:
            raise WireError(f"producer.{axis}_rank: {rank} is not below {axis}_size {size}")


def _check_array(field: str, data: bytes, length: int) -> None:
    expected = length * _COUNTS_DTYPE.itemsize
    if len(data) != expected:
        raise WireError(f"{field}: expected {expected} bytes ({length} int64 values), got {len(data)}")
    values = unpack_counts(data)
    if values.size and int(values.min()) < 0:
        raise WireError(f"{field}: value {int(np.argmin(values))} is negative ({int(values.min())})")


def _check_placement(placement: Placement, layers: list[MoeLayer], ep_size: int) -> None:
    if len(placement.table_of_layer) != len(layers):
        raise WireError(
            f"placement.table_of_layer: {len(placement.table_of_layer)} entries for {len(layers)} layers"
        )
    for layer, index in zip(layers, placement.table_of_layer, strict=True):
        if index >= len(placement.tables):
            raise WireError(f"placement.table_of_layer: no table {index} among {len(placement.tables)}")
        table = placement.tables[index]
        if len(table.physical_to_logical) % 2 or len(table.physical_to_logical) != len(
            table.physical_to_ep_rank
        ):
            raise WireError(
                f"placement.tables[{index}]: {len(table.physical_to_logical)} and "
                f"{len(table.physical_to_ep_rank)} bytes, expected two uint16 arrays of one length"
            )
        logical, ep_ranks = unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank)
        placed = np.bincount(logical, minlength=layer.num_experts)
        if len(placed) > layer.num_experts or not bool((placed > 0).all()):
            raise WireError(
                f"placement.tables[{index}]: layer {layer.layer} needs each of its {layer.num_experts} "
                f"logical experts placed at least once, and no other"
            )
        if int(ep_ranks.max()) >= ep_size:
            raise WireError(
                f"placement.tables[{index}]: EP rank {int(ep_ranks.max())} is not below ep_size {ep_size}"
            )
