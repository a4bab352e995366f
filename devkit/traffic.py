"""Sends completions to a vLLM server, several at a time, and keeps account of what it computed for them."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from devkit.vllm_server import MODEL_NAME

WORDS: Final = ("experts", "route", "tokens", "over", "layers", "and", "ranks", "with", "some", "skew")

CLOSE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Tally:
    """Sums over the answered requests, from the ``usage`` of vLLM's answers."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model's layers.

        Cached tokens did not, since they were computed before. Nor did the last token that each request
        generated, since nothing was to follow it.
        """
        return self.prompt_tokens - self.cached_tokens + self.generated_tokens - self.requests

    def plus(self, usage: dict[str, Any]) -> Tally:
        """With one more answer."""
        details = usage.get("prompt_tokens_details") or {}
        return Tally(
            self.requests + 1,
            self.prompt_tokens + usage["prompt_tokens"],
            self.cached_tokens + (details.get("cached_tokens") or 0),
            self.generated_tokens + usage["completion_tokens"],
        )


class TrafficError(RuntimeError):
    """A completion that failed."""


class Traffic:
    """Requests of unequal lengths to ``/v1/completions``, at most ``concurrency`` at a time.

    The same seed makes the same prompts.
    """

    def __init__(self, url: str, *, concurrency: int, max_tokens: int, seed: int = 0) -> None:
        self._max_tokens = max_tokens
        self._random = random.Random(seed)  # noqa: S311
        self._client = httpx.Client(base_url=url, timeout=120)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="traffic")
        self._futures: list[Future[None]] = []
        self._lock = threading.Lock()
        self._tally = Tally()

    def submit(self, count: int = 1) -> None:
        """Queue this many requests."""
        for _ in range(count):
            prompt = " ".join(self._random.choices(WORDS, k=self._random.randint(1, 60)))
            max_tokens = self._random.randint(max(1, self._max_tokens // 4), self._max_tokens)
            self._futures.append(self._pool.submit(self._complete, prompt, max_tokens))

    def tally(self) -> Tally:
        """The account so far."""
        with self._lock:
            return replace(self._tally)

    def pending(self) -> int:
        """Requests queued or under way.

        Raises:
            TrafficError: a request failed.
        """
        for future in [future for future in self._futures if future.done()]:
            self._futures.remove(future)
            future.result()
        return len(self._futures)

    def close(self) -> None:
        """Give up the requests that are queued, and those that aren't answered within a few seconds."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(self._futures, timeout=CLOSE_SECONDS)
        self._client.close()

    def _complete(self, prompt: str, max_tokens: int) -> None:
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        try:
            answer = self._client.post("/v1/completions", json=body)
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            raise TrafficError(f"a completion failed: {error!r}") from error
        if answer.status_code != httpx.codes.OK:
            raise TrafficError(f"a completion got status {answer.status_code}: {answer.text[:300]}")
        with self._lock:
            self._tally = self._tally.plus(answer.json()["usage"])
