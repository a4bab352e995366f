"""What the service answers, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
ExpertArray = npt.NDArray[np.int16] | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class TraceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A traced request. Times are seconds of Unix time.

    Attributes:
        request_id: vLLM's internal id, which is unique.
        names: the ids that find it, the longest first; the last one is the client's.
        server, model, dp_rank: where it ran.
        tokens: tokens computed for it, those that were computed again included.
        prompt_tokens, cached_tokens, preemptions: as vLLM told them.
        outcome: ``ended`` or ``cut_off``.
        role, pool, lora, finish_reason: empty: there is none, or it isn't known.
        accepted_drafts, rejected_drafts: tokens that were accepted drafts, and rows computed in vain.
        missing_stages, missing_tokens: what workers have not brought (yet); 0 also where they don't tell.
    """

    request_id: str
    names: tuple[str, ...]
    server: str
    model: str
    dp_rank: int
    outcome: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    started_at: float
    ended_at: float
    stored_at: float
    role: str = ""
    pool: str = ""
    lora: str = ""
    finish_reason: str = ""
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    missing_stages: int = 0
    missing_tokens: int = 0


class Trace(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The routing of a request.

    Attributes:
        info: whose.
        experts: [T, L, K] logical experts. form ``moescope``: int16, -1 where a position was not computed, or
            a layer takes fewer experts. form ``vllm``: uint8 or uint16, 0 there.
        first_position: of the first row.
        layers: int64 [L], decoder layers.
        num_experts: int64 [L], logical experts of each layer; form ``vllm``: 0 in a layer without experts.
        top_k: int64 [L], experts that a token takes.
        times_computed: int64 [T], how often each position was computed; 0: not at all, or with form ``vllm``
            not in every layer.
        weights_version: int64 [T], which version of the weights computed it last, as its worker counts them.
    """

    info: TraceInfo
    experts: ExpertArray
    first_position: int
    layers: Int64Array
    num_experts: Int64Array
    top_k: Int64Array
    times_computed: Int64Array
    weights_version: Int64Array

    @property
    def missing(self) -> Int64Array:
        """Positions that nobody computed, int64."""
        missing: Int64Array = self.first_position + np.flatnonzero(self.times_computed == 0)
        return missing

    @property
    def is_whole(self) -> bool:
        """Every position from 0 to the last is there, in all layers that were observed."""
        brought = not (self.info.missing_stages or self.info.missing_tokens)
        if not brought or self.first_position != 0 or (self.times_computed == 0).any():
            return False
        # A worker that doesn't tell how much its stage computed may lack a layer of a position.
        return not (self.experts < 0).all(axis=2).any()


class ByVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a worker's weights: what it computed is among positions ``first`` to before ``end``."""

    version: int
    first: int
    end: int


class RoutingPart(msgspec.Struct, frozen=True, kw_only=True):
    """A trace that a whole request is joined from, or that was looked at for it. Times are Unix seconds.

    Attributes:
        kind: ``main``: the answer has its generated tokens. ``same_id``: the same request elsewhere, such as
            on a prefill instance, or another attempt. ``taken_over``: another request, whose computation the
            KV cache had.
        request_id: vLLM's internal id.
        server, model, dp_rank, role: where it ran.
        positions: what the answer has of it, as (first, one past the last).
        unused: why the answer has nothing of it, such as ``not_needed`` or ``nothing_shared``; else empty.
        weights: the versions of its weights, as its own workers count them.
        outcome, finish_reason, tokens, prompt_tokens, cached_tokens, preemptions, missing_stages,
            missing_tokens: see :class:`TraceInfo`.
    """

    kind: Literal["main", "same_id", "taken_over"]
    request_id: str
    server: str
    model: str
    dp_rank: int
    role: str
    positions: tuple[tuple[int, int], ...]
    unused: str
    weights: tuple[ByVersion, ...]
    outcome: str
    finish_reason: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    missing_stages: int
    missing_tokens: int
    started_at: float
    ended_at: float


class MissingPositions(msgspec.Struct, frozen=True, kw_only=True):
    """Positions ``first`` to before ``end`` that no trace has.

    Attributes:
        why: a word, such as ``expired`` or ``not_traced``; docs/traces.md has them all.
        request_id: the request that computed them, where it is known; else empty.
        layers: the layers that are missing; empty: all.
    """

    first: int
    end: int
    why: str
    request_id: str = ""
    layers: tuple[int, ...] = ()


class RequestRouting(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The routing of a whole request, joined from the traces of all who computed some of it.

    Attributes:
        info: of its main trace.
        parts: the traces that it is joined from, or that were looked at; the first is the main one.
        missing: the positions that no trace has, and why.
        absent: why further traces of the id are not here (``incomplete``, ``expired``, ``evicted``); None: no
            others are known.
        experts, first_position, layers, num_experts, top_k: see :class:`Trace`.
        times_computed: int64 [T], how often the trace that gives a position computed it; 0: none gives it.
        weights_version: int64 [T], which version of the weights computed it last, as the workers of the trace
            that gives it count them.
    """

    info: TraceInfo
    parts: tuple[RoutingPart, ...]
    missing: tuple[MissingPositions, ...]
    absent: str | None
    experts: ExpertArray
    first_position: int
    layers: Int64Array
    num_experts: Int64Array
    top_k: Int64Array
    times_computed: Int64Array
    weights_version: Int64Array

    @property
    def part_of(self) -> Int64Array:
        """For each position which of ``parts`` gives it, int64 [T]; -1: none."""
        found = np.full(len(self.experts), -1, np.int64)
        for number, part in enumerate(self.parts):
            for first, end in part.positions:
                found[max(0, first - self.first_position) : max(0, end - self.first_position)] = number
        return found

    @property
    def is_whole(self) -> bool:
        """Every position from 0 to the last is there, in all layers that were observed."""
        lost = self.missing or self.info.missing_stages or self.info.missing_tokens
        return not lost and self.first_position == 0


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A request that an export doesn't have, or not to its end, and why.

    ``request_id`` and ``client_id`` are empty where the service no longer knows them.
    """

    request_id: str
    client_id: str
    why: str


class ExportPart(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of an export, in a file.

    Attributes:
        requests, tokens: how many it was to have, by the list of what is stored.
        nbytes: size of the file.
        next_cursor: where the next part goes on; empty: it was the last.
    """

    requests: int
    tokens: int
    nbytes: int
    next_cursor: str


def info_of(answer: dict[str, Any]) -> TraceInfo:
    """What a list has of a trace; fields that came later may lack."""
    return msgspec.convert(answer, TraceInfo)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole request says of where its rows come from."""

    parts: tuple[RoutingPart, ...]
    missing: tuple[MissingPositions, ...]
    absent: str | None = None


def told_of(text: str | bytes) -> Told:
    """That of its JSON, in which all else is left aside."""
    return msgspec.json.decode(text, type=Told)


def versions_of(parts: Sequence[RoutingPart], first: int, positions: int) -> Int64Array:
    """For each position the version that computed it last in the trace that gives it, int64 [T]."""
    found = np.zeros(positions, np.int64)
    for part in parts:
        for begin, end in part.positions:
            for of in part.weights:
                low, high = max(begin, of.first) - first, min(end, of.end) - first
                found[max(0, low) : max(0, high)] = of.version
    return found


def weights_of(weights: Int64Array, first: int, positions: int) -> Int64Array:
    """For each position the version that computed it last, int64 [T].

    Args:
        weights: [W, (version, first position, one past the last)] in the order of computing.
        first: position of the first row.
        positions: T.
    """
    found = np.zeros(positions, np.int64)
    for version, begin, end in weights.tolist():
        found[max(0, begin - first) : max(0, end - first)] = version
    return found
