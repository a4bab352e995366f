"""Requests on a vLLM engine in this process, step by step."""

from __future__ import annotations

import random
import time
from typing import Any

import torch


class Requests:
    """What runs on an engine, in blocks: requests are added, stepped, and drained before the next block.

    Args:
        llm: vLLM's, with its engine in this process.
        vocabulary: prompts are of tokens 1 to ``vocabulary - 1``.

    Attributes:
        extra_args: of the sampling of requests that are added.
    """

    def __init__(self, llm: Any, vocabulary: int) -> None:
        self.llm, self._vocabulary = llm, vocabulary
        self.core: Any = llm.llm_engine.engine_core.engine_core
        self.extra_args: dict[str, Any] | None = None
        self._added = 0
        self._under_way: list[str] = []

    def add(self, number: int, length: int, max_tokens: int) -> None:
        """Add requests with prompts of this length, the same in every call."""
        from vllm import SamplingParams

        rng = random.Random(0)  # noqa: S311
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=self.extra_args,
        )
        for _ in range(number):
            self._added += 1
            prompt = [rng.randrange(1, self._vocabulary) for _ in range(length)]
            self.llm.llm_engine.add_request(str(self._added), {"prompt_token_ids": prompt}, parameters)
            self._under_way.append(str(self._added))

    def step(self) -> float:
        """Run a step; its milliseconds."""
        start = time.perf_counter()
        self.llm.llm_engine.step()
        return (time.perf_counter() - start) * 1000

    def prefilled(self, number: int) -> bool:
        """Whether this many requests run, and all of them decode."""
        running = self.core.scheduler.running
        return len(running) == number and all(r.num_computed_tokens >= r.num_prompt_tokens for r in running)

    def drain(self) -> None:
        """Abort what is under way, and let vLLM finish all that it has enqueued or has to tell its worker.

        With async scheduling a step may wait in the engine's queue when no request is left. If it stayed
        there, the next block would take in its output: vLLM 0.33's own routed experts then fail.
        """
        self.llm.llm_engine.abort_request(self._under_way)
        self._under_way = []
        while self._has_work():
            self.llm.llm_engine.step()
        torch.cuda.synchronize()

    def _has_work(self) -> bool:
        queue = getattr(self.core, "batch_queue", None)  # None also without async scheduling
        return bool(
            self.llm.llm_engine.has_unfinished_requests() or queue or self.core.scheduler.has_requests()
        )

    def forget_prefixes(self) -> None:
        """Empty the prefix cache, since each block has the same prompts.

        Raises:
            RuntimeError: a request is under way.
        """
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache can't be emptied: a request is under way")
