"""Traces in the worker's memory, and how their rows are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.seam.ends import NO_END, Finish, RequestEnd
from moescope.capture.seam.requests import NewRequest
from moescope.capture.wire.traces import NO_EXPERT, ExpertArray, Run, TakenOver


@dataclass(slots=True)
class Trace:
    """A request's trace while it grows.

    The step's path makes and closes it. Other threads add its rows and send it (see
    `TraceAssembly` and `TraceSender`).

    Attributes:
        number: 1, 2, ... within the epoch; 0 while no row of this worker has come.
        nbytes: bytes that the step's path has set aside for it.
        dropped: whether it was given up; nothing is added to it then.
        broken: whether it was `TraceAssembly` that gave it up, and not the step's path.
        lora: the name of the request's LoRA adapter; empty: none.
        end: where the request ends.
        complete: whether the request's last token was sampled; rows that vLLM computes later are left out.
        last: the position of the request's last token, which gets no row; means something if ``complete``.
        rejected: rows that were left out: of drafts that were rejected, and behind the request's end.
        accepted: rows of drafts that were accepted.
        finish_reason: how the request ended; empty: it hasn't, or that isn't known.
        unknown_end: whether it may have ended in a step of which it isn't known what it sampled.
        unsure_from: the position from which rows of the last step may be missing, because what it sampled
            isn't known; else None.
        generated: the request's tokens behind its prompt, where its end depends on them.
        chunks: for each step an array [n, sum of top_k], in the order of computing; the layers side by side.
        runs: (first position, tokens) of the chunks, joined where they are consecutive.
        steps: (step, tokens) of each chunk.
        reached: the positions before it were computed, here or at another worker, or taken over.
        taken_over: who computed what was taken over, in rising order (see `TracePart`).
        started_step: its first step, also if its rows were at another worker; -1: there was none yet.
        computed: tokens that were computed for it, here or at another worker of this pipeline stage.
    """

    request_id: str
    client_ids: list[str]
    prompt_tokens: int
    cached_tokens: int
    preemptions: int = 0
    started_at_ns: int = field(default_factory=time.time_ns)
    ended_at_ns: int = 0
    outcome: str = "ended"
    nbytes: int = 0
    dropped: bool = False
    broken: bool = False
    number: int = 0
    lora: str = ""
    end: RequestEnd = NO_END
    complete: bool = False
    last: int = 0
    rejected: int = 0
    accepted: int = 0
    finish_reason: Finish = ""
    unknown_end: bool = False
    unsure_from: int | None = None
    generated: list[int] = field(default_factory=list)
    chunks: list[ExpertArray] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    reached: int = 0
    taken_over: list[TakenOver] = field(default_factory=list)
    started_step: int = -1
    computed: int = 0

    def count(self, step: int, tokens: int) -> None:
        """A step computed so many of its tokens, wherever their rows are."""
        if self.started_step < 0:
            self.started_step = step
        self.computed += tokens

    def add(self, first: int, experts: ExpertArray, step: int) -> None:
        """Add a step's tokens: consecutive positions from `first` on, their experts [n, sum of top_k]."""
        count = len(experts)
        self.chunks.append(experts)
        self.steps.append((step, count))
        if self.runs and sum(self.runs[-1]) == first:
            self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + count)
        else:
            self.runs.append((first, count))

    def go_on(self, new: NewRequest | None) -> None:
        """The request is computed further, whatever was taken for its end; with `new`, from more input.

        vLLM may forget what a step sampled for a request that it preempts meanwhile, or whose keys and values
        a connector could not load (``kv_load_failure_policy`` is ``recompute``).
        """
        self.complete, self.finish_reason = False, ""
        if new is not None:
            self.prompt_tokens, self.end = new.prompt_tokens, new.end
            self.generated.clear()

    def tell_end(self) -> None:
        """vLLM is done with the request, and all that its steps sampled was looked at."""
        if not self.complete and not self.unknown_end and self.outcome == "ended":
            self.finish_reason = self.end.otherwise

    def close(self) -> None:
        """No step will add to it any more."""
        self.ended_at_ns = time.time_ns()


def compact(rows: np.ndarray, masked: int, max_experts: int) -> ExpertArray:
    """A copy of some staged rows in as few bytes as hold them.

    Args:
        rows: uint8 or uint16 [n, sum of top_k], the layers' ids side by side.
        masked: the value of a slot that the router masked (see `TraceStaging`).
        max_experts: no layer has more.

    Returns:
        uint8 if all experts are below 256 and no slot is masked, else uint16, where a masked slot is
        `NO_EXPERT`.
    """
    holes = rows == masked
    if holes.any():
        return np.where(holes, np.uint16(NO_EXPERT), rows.astype(np.uint16))
    return rows.astype(np.uint8) if max_experts <= 256 else rows.astype(np.uint16)


def cut(runs: Sequence[tuple[int, int]], start: int, end: int) -> list[Run]:
    """The runs of the tokens from ``start`` up to ``end`` of a trace, in the order of computing."""
    found: list[Run] = []
    at = 0
    for first, count in runs:
        low, high = max(start, at), min(end, at + count)
        if low < high:
            found.append(Run(first + low - at, high - low))
        at += count
    return found
