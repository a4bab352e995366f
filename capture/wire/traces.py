"""The wire of routing traces: which logical experts every computed token of a request took.

A part is msgpack, sent as the body of ``POST /v1/traces`` with the content type :data:`TRACE_CONTENT_TYPE`.
A trace is one part, or several if it is large. ``(producer.key, epoch, trace, part)`` identifies a part, so
sending it twice is harmless. A trace counts as stored when all its parts are. Traces hold no text and no
token ids, yet routing says much about a prompt: handle them like prompts.

Versioned apart from the frames, by the same rules as :mod:`moescope.capture.wire`.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from moescope.capture.wire.arrays import WireError
from moescope.capture.wire.codec import decode_versioned
from moescope.capture.wire.schema import MAX_LAYERS, Count, MoeLayer, Name, Positive, Producer, Text

TRACE_MAJOR: Final = 1
TRACE_MINOR: Final = 4
TRACE_CONTENT_TYPE: Final = "application/vnd.moescope.trace+msgpack"

MAX_PARTS: Final = 1 << 16
MAX_RUNS: Final = 1 << 17
"""Runs of a part, at most. A part of 8 MiB whose tokens take 64 bytes has as many tokens."""
MAX_POSITION: Final = 1 << 40
MAX_TAKEN_OVER: Final = 1 << 12
"""Entries of ``taken_over``, at most."""
NO_EXPERT: Final = 0xFFFF
"""The id of a masked slot; a trace that has one takes two bytes for each id."""

ExpertArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Run(Struct, frozen=True, array_like=True):
    """Tokens computed one after the other: the `count` positions of the request from `first` on."""

    first: Annotated[int, Meta(ge=0, lt=MAX_POSITION)]
    count: Annotated[int, Meta(ge=1, lt=MAX_POSITION)]


class TakenOver(Struct, frozen=True, array_like=True):
    """Positions that were not computed for a request: the KV cache had them.

    Attributes:
        first, count: the positions.
        request_id: vLLM's internal id of the request whose computation the cache had, at the same positions,
            in the same worker; empty: it isn't known.
        why: why it isn't known, such as ``not_traced`` or ``kv_transfer``; else empty.
    """

    first: Annotated[int, Meta(ge=0, lt=MAX_POSITION)]
    count: Annotated[int, Meta(ge=1, lt=MAX_POSITION)]
    request_id: Text
    why: Text = ""


class TracePart(Struct, kw_only=True):
    """A part of the trace of one request in one worker.

    Attributes:
        wire: (major, minor) version of this schema.
        producer: the worker; under tensor or pipeline parallelism the traces of several workers make one.
        epoch: as in its frames.
        trace: 1, 2, ... within the epoch.
        part: 0 .. ``parts`` - 1, in the order of computing.
        request_id: vLLM's internal id, unique within the deployment.
        client_ids: ids by which a client knows it: the completion's id, ``X-Request-Id``.
        outcome: ``ended``: vLLM was done with the request, finished or aborted. ``cut_off``: the worker was
            shut down before.
        prompt_tokens: length of the prompt.
        cached_tokens: leading positions that a prefix cache had, so that they were not computed.
        preemptions: how often it was preempted; positions computed again after it appear again in ``runs``.
        started_at_ns, ended_at_ns: first and last step, nanoseconds of Unix time, on the producer's clock.
        layers: the traced MoE layers, in rising order of ``layer``.
        runs: positions of the part's T tokens, in the order of computing.
        steps: raw little-endian int64 [T], the number of the step that computed each token, as in the
            worker's frames (`StepLoads`). Empty in parts of wire minor 0.
        id_bytes: 1 or 2 bytes an expert's id.
        experts: for each of ``layers`` raw little-endian ids [T, top_k] of that layer, logical experts.
        weights_version: of the worker's frames, when the part's first token was computed. 0 in parts of wire
            minor 1 or below.
        rejected_drafts: how many rows of the whole trace are in no ``runs``: of draft tokens that were
            rejected, and of what was computed behind the request's end. 0 in parts of wire minor 1 or below.
        accepted_drafts: how many tokens of the whole trace were drafts that were accepted. 0 also where the
            worker doesn't tell it.
        taken_over: of the whole trace, which request computed which of its cached positions, in rising order.
            Of cached positions that no entry has, the worker doesn't tell it.
        lora: the name of the request's LoRA adapter; empty: none, or the worker doesn't tell it.
        finish_reason: how the request ended; empty: the worker doesn't know it. Of a pipeline's stages the
            last one tells it.
        started_step: the number of the request's first step, as in ``steps``: the same in all workers of the
            deployment, also in one that had none of that step's rows. -1: the worker doesn't tell it.
        computed_tokens: how many tokens of the whole trace the workers of this pipeline stage have together.
            0: the worker doesn't tell it.

    ``accepted_drafts``, ``taken_over``, ``lora`` and ``finish_reason`` came with minor 3, ``started_step``
    and ``computed_tokens`` with minor 4.
    """

    wire: tuple[int, int]
    producer: Producer
    epoch: Positive
    trace: Positive
    part: Annotated[int, Meta(ge=0, lt=MAX_PARTS)]
    parts: Annotated[int, Meta(ge=1, le=MAX_PARTS)]
    request_id: Name
    client_ids: Annotated[list[Name], Meta(max_length=8)]
    outcome: Literal["ended", "cut_off"]
    prompt_tokens: Count
    cached_tokens: Count
    preemptions: Count
    started_at_ns: Count
    ended_at_ns: Count
    layers: Annotated[list[MoeLayer], Meta(min_length=1, max_length=MAX_LAYERS)]
    runs: Annotated[list[Run], Meta(min_length=1, max_length=MAX_RUNS)]
    id_bytes: Literal[1, 2]
    experts: Annotated[list[bytes], Meta(max_length=MAX_LAYERS)]
    steps: bytes = b""
    weights_version: Count = 0
    rejected_drafts: Count = 0
    accepted_drafts: Count = 0
    taken_over: Annotated[list[TakenOver], Meta(max_length=MAX_TAKEN_OVER)] = []
    lora: Text = ""
    finish_reason: Literal["", "stop", "length", "abort", "error", "repetition"] = ""
    started_step: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    computed_tokens: Count = 0

    @property
    def tokens(self) -> int:
        """T, the part's tokens."""
        return sum(run.count for run in self.runs)

    def ids_of(self, index: int) -> ExpertArray:
        """Logical experts of the layer at ``index`` of ``layers``: read-only uint8 or uint16 [T, top_k]."""
        return read_ids(self.experts[index], self.id_bytes, self.layers[index].top_k)


def read_ids(data: bytes, id_bytes: int, top_k: int) -> ExpertArray:
    """Raw little-endian ids of one layer to a read-only uint8 or uint16 array [T, top_k]."""
    if id_bytes == 2:
        return np.frombuffer(data, "<u2").astype(np.uint16, copy=False).reshape(-1, top_k)
    return np.frombuffer(data, np.uint8).reshape(-1, top_k)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TracePart)


def encode_part(part: TracePart) -> bytes:
    """The part as msgpack."""
    return _encoder.encode(part)


def decode_part(data: bytes) -> TracePart:
    """Msgpack to a part whose fields fit together (see :func:`check_part`).

    Raises:
        WireVersionError: another major version.
        WireError: not msgpack, or a field that is missing, of the wrong type or out of range.
    """
    part = decode_versioned(data, _decoder, TRACE_MAJOR, "trace")
    check_part(part)
    return part


def check_part(part: TracePart) -> None:
    """Check what the types alone can't say.

    Raises:
        WireError: names the field, what it holds and what was expected.
    """
    if part.part >= part.parts:
        raise WireError(f"part: {part.part} is not below parts {part.parts}")
    ids = [layer.layer for layer in part.layers]
    if any(a >= b for a, b in itertools.pairwise(ids)):
        raise WireError(f"layers: ids must rise strictly, got {ids}")
    if len(part.experts) != len(part.layers):
        raise WireError(f"experts: {len(part.experts)} arrays for {len(part.layers)} layers")
    tokens = part.tokens
    for index, layer in enumerate(part.layers):
        expected = tokens * layer.top_k * part.id_bytes
        if len(part.experts[index]) != expected:
            raise WireError(
                f"experts[{index}]: expected {expected} bytes ({tokens} tokens x top-k {layer.top_k} x "
                f"{part.id_bytes}), got {len(part.experts[index])}"
            )
    _check_ids(part)
    if any(a.first + a.count > b.first for a, b in itertools.pairwise(part.taken_over)):
        raise WireError("taken_over: positions must rise, and no two entries may have the same")
    if part.steps:
        _check_steps(part.steps, tokens)


def _check_steps(steps: bytes, tokens: int) -> None:
    if len(steps) != 8 * tokens:
        raise WireError(f"steps: expected {8 * tokens} bytes (one int64 a token), got {len(steps)}")
    if int(np.frombuffer(steps, "<i8").min()) < 0:
        raise WireError("steps: a number below 0")


def _check_ids(part: TracePart) -> None:
    """Check layers with equally many experts together: a call for each would cost more than the ids."""
    alike: dict[int, list[int]] = {}
    for index, layer in enumerate(part.layers):
        alike.setdefault(layer.num_experts, []).append(index)
    for num_experts, indices in alike.items():
        data = b"".join([part.experts[index] for index in indices])
        if bool(_beyond(read_ids(data, part.id_bytes, 1), num_experts).any()):
            raise _first_beyond(part, indices)


def _beyond(ids: ExpertArray, num_experts: int) -> npt.NDArray[np.bool_]:
    beyond = ids >= num_experts
    if ids.dtype.itemsize == 2:
        beyond &= ids != NO_EXPERT
    return beyond


def _first_beyond(part: TracePart, indices: list[int]) -> WireError:
    for index in indices:
        layer, ids = part.layers[index], part.ids_of(index)
        beyond = _beyond(ids, layer.num_experts)
        if bool(beyond.any()):
            expert = int(ids[beyond][0])
            return WireError(
                f"experts[{index}]: expert {expert} in layer {layer.layer} of {layer.num_experts}"
            )
    raise AssertionError("no expert is beyond its layer's")
