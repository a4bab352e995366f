"""What the service answers, as values."""

from __future__ import annotations

from typing import Any

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
        times_computed: int64 [T], how often each position was computed; 0: not at all.
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
