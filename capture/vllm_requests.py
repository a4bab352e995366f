"""What vLLM's scheduler and model runner V1 say of the requests of a step: the seam of routing traces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

OPT_IN: Final = "moescope_trace"
"""Key of a request's ``vllm_xargs`` (``SamplingParams.extra_args``) that asks for its trace."""

# vLLM appends eight hexadecimal digits to the id that its front end gave a request, and puts `<i>_` before it
# for the i-th of several samples (vllm/v1/engine/input_processor.py, parallel_sampling.py).
_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}$")
_SAMPLE: Final = re.compile(r"^\d+_(?=\D)")
_PREFIXES: Final = ("chatcmpl-", "cmpl-", "resp_")


class NewRequest(NamedTuple):
    """A request that is scheduled for the first time, or again after a preemption."""

    request_id: str
    prompt_tokens: int
    first_position: int
    opted_in: bool


class StepRequests(NamedTuple):
    """The requests of a step.

    Attributes:
        finished: ids that vLLM is done with, finished or aborted; they come before the step's own.
        new: requests that the worker hasn't seen, in the scheduler's order.
        resumed: ids that go on after a preemption.
        first_positions: id to the position of the first token that the step computes for it.
        num_tokens: id to the tokens that it computes, which are consecutive.
    """

    finished: Sequence[str]
    new: Sequence[NewRequest]
    resumed: frozenset[str]
    first_positions: Mapping[str, int]
    num_tokens: Mapping[str, int]


def scheduled_tokens(scheduler_output: Any) -> int:
    """The true number of tokens of a step about to run."""
    return int(scheduler_output.total_num_scheduled_tokens)


def read_requests(scheduler_output: Any) -> StepRequests:
    """The requests of a step about to run, from the scheduler's output."""
    cached = scheduler_output.scheduled_cached_reqs
    new = [
        NewRequest(
            str(item.req_id),
            int(item.prompt_len),
            int(item.num_computed_tokens),
            _opted_in(item.sampling_params),
        )
        for item in scheduler_output.scheduled_new_reqs
    ]
    positions = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    positions.update((item.request_id, item.first_position) for item in new)
    return StepRequests(
        finished=tuple(scheduler_output.finished_req_ids),
        new=new,
        resumed=frozenset(cached.resumed_req_ids),
        first_positions=positions,
        num_tokens=scheduler_output.num_scheduled_tokens,
    )


def batch_order(model_runner: Any) -> list[str]:
    """The requests of the batch in the order of its rows; true from the forward pass on, until the next step.

    The runner reorders its batch while it prepares the inputs, so that the scheduler's order is not it.
    """
    return [str(request_id) for request_id in model_runner.input_batch.req_ids]


def why_not_traceable(vllm_config: Any, device_type: str) -> str | None:
    """Why the requests' rows can't be told in this server, or None."""
    if device_type != "cpu":
        return (
            f"routing traces are not supported on {device_type} yet: a CUDA graph's replay calls no callback"
        )
    if vllm_config.speculative_config is not None:
        return "routing traces are not supported with speculative decoding: rejected drafts are rows too"
    if vllm_config.parallel_config.decode_context_parallel_size > 1:
        return "routing traces are not supported with decode context parallelism"
    return None


def client_ids(request_id: str) -> list[str]:
    """The ids by which a client may know a request, most specific first.

    ``cmpl-abc-0-1a2b3c4d``, the first prompt of a completion, gives ``cmpl-abc-0``, ``cmpl-abc`` and ``abc``,
    which is the ``X-Request-Id`` if the client sent one.
    """
    return list(dict.fromkeys(_client_ids(request_id)))


def _client_ids(request_id: str) -> Iterator[str]:
    outer = _SUFFIX.sub("", _SAMPLE.sub("", request_id)) or request_id
    yield outer
    if outer.startswith("cmpl-"):
        outer = re.sub(r"-\d+$", "", outer)
        yield outer
    for prefix in _PREFIXES:
        if outer.startswith(prefix) and len(outer) > len(prefix):
            yield outer.removeprefix(prefix)
            return


def _opted_in(sampling_params: Any) -> bool:
    extra = getattr(sampling_params, "extra_args", None) or {}
    value = extra.get(OPT_IN)
    return value in (True, 1) or str(value).lower() in ("1", "true")
