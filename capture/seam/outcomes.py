"""What sampling made of a step's draft tokens, from what vLLM's runners return; never a wait.

vLLM copies the sampled tokens to the host anyway. Their host memory and the event of that copy are kept until
somebody reads them, and none of vLLM's device tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from moescope.capture.wire import Int64Array

_REJECTED: Final = -1
"""What runner V1 has in place of a token that was not sampled."""


class Sampled(NamedTuple):
    """The tokens that a step sampled.

    Attributes:
        request_ids: of the n requests, in the order of the batch.
        tokens: n rows of token ids, of which the first ``counts`` are sampled.
        counts: int64 [n]; 0 for a chunk of a prompt that does not end it.
    """

    request_ids: Sequence[str]
    tokens: Sequence[Sequence[int]] | np.ndarray
    counts: Int64Array

    def by_request(self) -> dict[str, Sequence[int]]:
        """Each request's sampled tokens."""
        rows = zip(self.request_ids, self.tokens, self.counts.tolist(), strict=True)
        return {name: list(row[:count]) for name, row, count in rows}


class StepOutcome:
    """What a step sampled, known some time after the step's forward pass.

    The step's path makes it before the forward pass, and then says what the runner returned, or that nothing
    was sampled. Any thread may ask.

    Args:
        drafts: how many draft tokens the step verifies, by request.

    Attributes:
        lost: whether what was sampled will never be known.
    """

    def __init__(self, drafts: Mapping[str, int]) -> None:
        self.drafts = drafts
        self.lost = False
        self._source: _Source | None = None

    @property
    def told(self) -> bool:
        """Whether the step's path has said what it can."""
        return self.lost or self._source is not None

    @property
    def settled(self) -> bool:
        """Whether the tokens are on the host, or lost; does not wait."""
        source = self._source
        return self.lost or (source is not None and (source.event is None or bool(source.event.query())))

    def tell(self, output: Any) -> None:
        """The step has been sampled.

        Raises:
            LookupError: the runner's output is none that we know; the outcome is lost then.
        """
        try:
            self._source = _source_of(output)
        except Exception:
            self.lost = True
            raise

    def lose(self) -> None:
        """Nothing will be told, unless it was already."""
        self.lost = self.lost or self._source is None

    def read(self) -> Sampled | None:
        """What was sampled, once `settled`; None if that is lost."""
        return None if self._source is None else self._source.read()


class _Source(NamedTuple):
    """An event after which `read` finds the tokens on the host; None: they are there."""

    event: torch.cuda.Event | None
    read: Callable[[], Sampled]


def draft_counts(scheduler_output: Any) -> dict[str, int]:
    """How many draft tokens a step verifies, by request, as the scheduler has them."""
    return {name: len(tokens) for name, tokens in scheduler_output.scheduled_spec_decode_tokens.items()}


def _source_of(output: Any) -> _Source:
    if hasattr(output, "num_sampled_tokens_np"):
        return _of_v2(output)
    if hasattr(output, "sampled_token_ids_cpu"):
        return _of_v1(output)
    tokens = getattr(output, "sampled_token_ids", None)
    if not tokens or len(tokens) != len(output.req_ids):
        raise LookupError(f"what was sampled is not in vLLM's {type(output).__name__}")
    kept = [tuple(row) for row in tokens]  # the scheduler, in this process, may cut the lists
    sampled = Sampled(list(output.req_ids), kept, np.array([len(row) for row in kept], np.int64))
    return _Source(None, lambda: sampled)


def _of_v2(output: Any) -> _Source:
    """Runner V2 gives tokens [n, k + 1] and how many of each row were sampled."""
    names, tokens, counts = (
        list(output.model_runner_output.req_ids),
        output.sampled_token_ids,
        output.num_sampled_tokens_np,
    )
    return _Source(output.copy_event, lambda: Sampled(names, tokens, counts.astype(np.int64)))


def _of_v1(output: Any) -> _Source:
    """Runner V1, asynchronous: tokens [n, k + 1], -1 from the first one on that was not sampled."""
    names, invalid = list(output._model_runner_output.req_ids), list(output._invalid_req_indices)
    tokens, vocabulary = output.sampled_token_ids_cpu.numpy(), int(output.vocab_size)

    def read() -> Sampled:
        valid = (tokens != _REJECTED) & (tokens < vocabulary)
        valid[invalid] = False
        return Sampled(names, tokens, valid.sum(axis=1, dtype=np.int64))

    return _Source(output.async_copy_ready_event, read)


def why_no_outcomes(vllm_config: Any) -> str | None:
    """Why this worker can't tell accepted drafts from rejected ones, or None; None without speculation."""
    if vllm_config.speculative_config is None:
        return None
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "with several pipeline stages, the earlier ones aren't told which drafts were accepted"
    return None


def positions_of(model_runner: Any) -> torch.Tensor:
    """The position in its request of each row of the step under way: int64 [max_tokens] on the device.

    The runner writes them before each forward pass, from what was really accepted. They count tokens also
    where the model itself takes positions in several dimensions (M-RoPE), which the runner keeps elsewhere.
    Runner V2 has them in ``input_buffers``, V1 in ``positions``.

    Raises:
        LookupError: this runner has no such buffer.
    """
    holder = getattr(model_runner, "input_buffers", model_runner)
    found = getattr(holder, "positions", None)
    found = getattr(found, "gpu", found)
    if not isinstance(found, torch.Tensor) or found.dim() != 1 or found.dtype is not torch.int64:
        raise LookupError(f"{type(model_runner).__name__} has no positions of the rows that moescope knows")
    return found
