"""Traces of simulated requests: real wire messages, whose tokens choose experts by the fleet's popularity.

The requests exist for their traces only: their tokens are not those that the frames count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_MAJOR, Run, TracePart
from moescope.service.measures.arrays import FloatArray

MEAN_PROMPT: Final = 160
MEAN_OUTPUT: Final = 80
TOKENS_OF_A_REQUEST: Final = MEAN_PROMPT + MEAN_OUTPUT
_LONGEST: Final = 1024  # tokens of a prompt, and of an output
_BLOCK: Final = 16  # prefixes are cached in whole blocks
_CACHED_SHARE: Final = 0.25  # share of the requests whose prefix was cached
_PREEMPTED_SHARE: Final = 0.1  # share of the requests that were preempted once
_DECODE_PER_S: Final = 40.0  # tokens of a request per second, for its begin
_TASTE: Final = 0.7
"""Standard deviation of a request's own log-popularity of experts, which makes its tokens alike."""


@dataclass(frozen=True, slots=True)
class _Request:
    """Numbers of tokens; ``preempted_at`` is the position before which the request was preempted."""

    prompt: int
    output: int
    cached: int
    preempted_at: int | None

    @property
    def runs(self) -> list[Run]:
        """Positions in the order in which they were computed; the last sampled token is never fed back."""
        end = self.prompt + self.output - 1
        if self.preempted_at is None:
            return [Run(self.cached, end - self.cached)]
        before = Run(self.cached, self.preempted_at - self.cached)
        return [before, Run(self.cached, end - self.cached)]


class RequestTracer:
    """Makes traces of requests that ended. It has a seed of its own, so that tracing changes no frame."""

    def __init__(self, layers: list[wire.MoeLayer], seed: int) -> None:
        self._layers = layers
        self._rng = np.random.default_rng(seed)
        self._serial = 0
        self._next: dict[tuple[int, int], int] = {}

    def ended(self, mean: float) -> int:
        """How many traced requests ended: Poisson-distributed around ``mean``."""
        return int(self._rng.poisson(mean))

    def trace(
        self,
        producer: wire.Producer,
        epoch: int,
        now_ns: int,
        prefill: FloatArray,
        decode: FloatArray,
    ) -> TracePart:
        """A request that has just ended.

        Args:
            producer: the worker that ran it.
            epoch: the worker's epoch.
            now_ns: time of the request's last step, nanoseconds of Unix time.
            prefill: probability that a token of a prompt chooses an expert, float64 [L, E].
            decode: probability that a token after the prompt chooses an expert, float64 [L, E].
        """
        request = self._request()
        number = self._next.get((producer.dp_rank, epoch), 1)
        self._next[producer.dp_rank, epoch] = number + 1
        self._serial += 1
        runs = request.runs
        positions = np.concatenate([np.arange(run.first, run.first + run.count) for run in runs])
        experts = self._choose(positions, positions < request.prompt, prefill, decode)
        outer = f"chat-{self._rng.integers(1 << 32):08x}"
        wide = max(layer.num_experts for layer in self._layers) > 256
        return TracePart(
            wire=(TRACE_MAJOR, 0),  # without the numbers of steps, which minor 1 added
            producer=producer,
            epoch=epoch,
            trace=number,
            part=0,
            parts=1,
            request_id=f"cmpl-{outer}-0-{self._serial:08x}",
            client_ids=[f"cmpl-{outer}-0", f"cmpl-{outer}", outer],
            outcome="ended",
            prompt_tokens=request.prompt,
            cached_tokens=request.cached,
            preemptions=int(request.preempted_at is not None),
            started_at_ns=max(0, now_ns - int(len(positions) / _DECODE_PER_S * 1e9)),
            ended_at_ns=now_ns,
            layers=self._layers,
            runs=runs,
            id_bytes=2 if wide else 1,
            experts=[ids.astype("<u2" if wide else np.uint8).tobytes() for ids in experts],
        )

    def _request(self) -> _Request:
        rng = self._rng
        prompt, output = (
            min(_LONGEST, 2 + int(rng.exponential(mean))) for mean in (MEAN_PROMPT, MEAN_OUTPUT)
        )
        # vLLM computes at least the prompt's last token.
        blocks = (prompt - 1) // _BLOCK
        cached = _BLOCK * int(rng.integers(1, blocks + 1)) if blocks and rng.random() < _CACHED_SHARE else 0
        first, last = cached + 1, prompt + output - 1
        preempted = rng.random() < _PREEMPTED_SHARE and first < last
        return _Request(prompt, output, cached, int(rng.integers(first, last)) if preempted else None)

    def _choose(
        self, positions: np.ndarray, of_prompt: np.ndarray, prefill: FloatArray, decode: FloatArray
    ) -> list[np.ndarray]:
        """Ids of each layer, [T, top_k], the most wanted first; a position chooses alike when computed again.

        The draw is an exponential race: each expert gets a time from Exp(weight), and the top-k smallest
        times win. That is a draw without replacement by weight.
        """
        unique, place = np.unique(positions, return_inverse=True)
        prompt = np.zeros(len(unique), dtype=bool)
        prompt[place] = of_prompt
        chosen = []
        for row, layer in enumerate(self._layers):
            taste = np.exp(_TASTE * self._rng.standard_normal(layer.num_experts))
            weights = np.where(prompt[:, np.newaxis], prefill[row] * taste, decode[row] * taste)
            luck = np.maximum(self._rng.standard_exponential(weights.shape, np.float32), 1e-12)
            race = (-weights / luck).astype(np.float32)
            first = np.argpartition(race, layer.top_k - 1, axis=1)[:, : layer.top_k]
            order = np.argsort(np.take_along_axis(race, first, axis=1), axis=1)
            chosen.append(np.take_along_axis(first, order, axis=1)[place])
        return chosen
