"""What sampling made of a step's draft tokens, from what vLLM's runners return; never a wait.

vLLM copies the sampled tokens to the host anyway. Their host memory and the event of that copy are kept until
somebody reads them, and none of vLLM's device tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from moescope.capture.seam.ends import NO_LIMITS, Limits, RequestEnd, prompt_length, request_end
from moescope.capture.wire import Int64Array

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_OVERHEAD: Final = 1024
_REQUEST_BYTES: Final = 128
"""Host memory that an outcome holds besides what was sampled, about: for itself, and for each request."""
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

    def of(self, wanted: Collection[str]) -> dict[str, list[int]]:
        """The sampled tokens of some requests; those that the step hasn't are left out."""
        places = [(name, row) for row, name in enumerate(self.request_ids) if name in wanted]
        return {name: self.row(row) for name, row in places}

    def row(self, index: int) -> list[int]:
        """The sampled tokens of one request."""
        return [int(token) for token in self.tokens[index][: int(self.counts[index])]]

    def are_among(self, tokens: Int64Array) -> BoolArray:
        """bool [n]: whether a request has sampled one of these tokens."""
        if not tokens.size or not len(self.counts):
            return np.zeros(len(self.counts), np.bool_)
        sampled = np.arange(int(self.counts.max())) < self.counts[:, None]
        if isinstance(self.tokens, np.ndarray):
            among = _is_among(self.tokens[:, : sampled.shape[1]], tokens)
        else:
            among = np.zeros(sampled.shape, np.bool_)
            flat = np.fromiter(chain.from_iterable(self.tokens), np.int64, int(self.counts.sum()))
            among[sampled] = _is_among(flat, tokens)
        return np.asarray((among & sampled).any(axis=1), np.bool_)


def _is_among(values: np.ndarray, few: Int64Array) -> BoolArray:
    """Like `np.isin`, which takes longer for a few."""
    if few.size > 8:
        return np.isin(values, few)
    found: BoolArray = values == few[0]
    for one in few[1:]:
        found |= values == one
    return found


class Start(NamedTuple):
    """A request begins, or starts over, with `length` tokens, of which `prompt` are its prompt.

    ``generated`` has the others where the request's end depends on them.
    """

    request_id: str
    prompt: int
    length: int
    end: RequestEnd
    generated: Sequence[int] = ()


class StepOutcome:
    """What a step sampled, known some time after the step's forward pass.

    The step's path makes it before the forward pass, and then says what the runner returned, or that nothing
    was sampled. Any thread may ask.

    Attributes:
        finished: requests that were done before the step.
        starts: requests that the worker hasn't seen, or that start over in runner V2.
        resumed: tokens generated so far of the requests that go on after a preemption in runner V1.
        lost: whether what was sampled will never be known.

    Args:
        scheduler_output: of the step about to run.
        limits: of the server.
    """

    def __init__(self, scheduler_output: Any, limits: Limits = NO_LIMITS) -> None:
        self._scheduled = scheduler_output.scheduled_spec_decode_tokens
        self.finished = tuple(scheduler_output.finished_req_ids)
        self.starts = [_start(item, limits) for item in scheduler_output.scheduled_new_reqs]
        self.resumed = _resumed(scheduler_output.scheduled_cached_reqs)
        self.lost = False
        self._source: _Source | None = None

    def drafts_of(self, names: Sequence[str]) -> Int64Array:
        """int64 [n]: how many draft tokens the step verifies of these requests."""
        drafts = map(self._scheduled.get, names, repeat(()))
        return np.fromiter(map(len, drafts), np.int64, len(names))

    @property
    def num_drafts(self) -> int:
        """How many draft tokens the step verifies."""
        return sum(map(len, self._scheduled.values()))

    @property
    def nbytes(self) -> int:
        """Host memory that is held until the outcome is let go, about; final once it is settled."""
        held = 0 if self._source is None else self._source.nbytes
        return _OVERHEAD + _REQUEST_BYTES * len(self._scheduled) + held

    @property
    def told(self) -> bool:
        """Whether the step's path has said what it can."""
        return self.lost or self._source is not None

    @property
    def settled(self) -> bool:
        """Whether the tokens are on the host, or lost; does not wait."""
        source = self._source
        return self.lost or (source is not None and (source.event is None or _has_happened(source.event)))

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
    """An event after which `read` finds the tokens on the host; None: they are there.

    ``nbytes`` is the host memory that they take. PyTorch's pinned blocks are up to twice as large.
    """

    event: torch.cuda.Event | None
    read: Callable[[], Sampled]
    nbytes: int


def _has_happened(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]


def draft_counts(scheduler_output: Any) -> dict[str, int]:
    """How many draft tokens a step verifies, by request, as the scheduler has them."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    return {name: len(of_request) for name, of_request in drafts.items()}


def _start(new_request: Any, limits: Limits) -> Start:
    prompt, end = prompt_length(new_request), request_end(new_request, limits)
    # Runner V2: after a preemption, the generated tokens too.
    known = getattr(new_request, "prefill_token_ids", None) or ()
    generated = () if end.repetition is None else tuple(known[prompt:])
    return Start(str(new_request.req_id), prompt, max(prompt, len(known)), end, generated)


def _resumed(cached: Any) -> dict[str, int]:
    if not cached.resumed_req_ids:
        return {}
    generated = zip(cached.req_ids, cached.num_output_tokens, strict=True)
    return {name: int(number) for name, number in generated if name in cached.resumed_req_ids}


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
    return _Source(None, lambda: sampled, 8 * int(sampled.counts.sum()))


def _of_v2(output: Any) -> _Source:
    """Runner V2 gives tokens [n, k + 1] and how many of each row were sampled."""
    names, tokens, counts = (
        list(output.model_runner_output.req_ids),
        output.sampled_token_ids,
        output.num_sampled_tokens_np,
    )
    nbytes = 2 * int(tokens.nbytes + counts.nbytes)
    return _Source(output.copy_event, lambda: Sampled(names, tokens, counts.astype(np.int64)), nbytes)


def _of_v1(output: Any) -> _Source:
    """Runner V1, asynchronous: tokens [n, k + 1], -1 from the first one on that was not sampled."""
    names, invalid = list(output._model_runner_output.req_ids), list(output._invalid_req_indices)
    tokens, vocabulary = output.sampled_token_ids_cpu.numpy(), int(output.vocab_size)

    def read() -> Sampled:
        valid = (tokens != _REJECTED) & (tokens < vocabulary)
        valid[invalid] = False
        return Sampled(names, tokens, valid.sum(axis=1, dtype=np.int64))

    return _Source(output.async_copy_ready_event, read, 2 * int(tokens.nbytes))


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
