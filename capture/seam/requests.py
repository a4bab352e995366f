"""What vLLM's scheduler and model runners say of the requests of a step, for phases and for traces."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from moescope.capture.seam.ends import (
    NO_END,
    NO_LIMITS,
    Limits,
    RequestEnd,
    lora_name,
    prompt_length,
    request_end,
)
from moescope.capture.seam.features import runs_v2, sorter_v2
from moescope.capture.seam.outcomes import draft_counts, why_no_outcomes

OPT_IN: Final = "moescope_trace"
"""Key of a request's ``vllm_xargs`` (``SamplingParams.extra_args``) that asks for its trace."""

# vLLM appends eight hexadecimal digits to the id that its front end gave a request, and puts `<i>_` before it
# for the i-th of several samples (vllm/v1/engine/input_processor.py, parallel_sampling.py).
_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}$")
_SAMPLE: Final = re.compile(r"^\d+_(?=\D)")
_PREFIXES: Final = ("chatcmpl-", "cmpl-", "resp_")


class NewRequest(NamedTuple):
    """A request that is scheduled for the first time, or again after a preemption.

    ``lora`` is the name of its LoRA adapter; empty: none.
    """

    request_id: str
    prompt_tokens: int
    first_position: int
    opted_in: bool
    end: RequestEnd = NO_END
    lora: str = ""


class RowsOf(NamedTuple):
    """What a step computes for its requests, by id.

    Attributes:
        first_positions: the position of the first token that the step computes for the request. With
            speculative decoding and asynchronous scheduling vLLM takes all earlier drafts for accepted here.
        drafts: how many of the request's tokens, the last ones, are draft tokens.
    """

    first_positions: Mapping[str, int]
    drafts: Mapping[str, int] = MappingProxyType({})


class StepRequests(NamedTuple):
    """The requests of a step.

    Attributes:
        finished: ids that vLLM is done with, finished or aborted; they come before the step's own.
        new: requests that the worker hasn't seen, in the scheduler's order.
        resumed: ids that go on after a preemption.
        num_tokens: by id, how many tokens the step computes for the request; they are consecutive.
        rows: tells more of each request. It looks at all of them, so it is for steps that need it.
    """

    finished: Sequence[str]
    new: Sequence[NewRequest]
    resumed: frozenset[str]
    num_tokens: Mapping[str, int]
    rows: Callable[[], RowsOf]


def scheduled_tokens(scheduler_output: Any) -> int:
    """The true number of tokens of a step about to run."""
    return int(scheduler_output.total_num_scheduled_tokens)


def is_of_remote_prefill(new_request: Any) -> bool:
    """Whether the client of one of the scheduler's new requests said that another instance prefilled it.

    Requests tell their KV connector in ``kv_transfer_params``. Connectors take ``do_remote_prefill`` back
    once they load, and leave where the prompt's keys and values were (``remote_engine_id`` and others).
    """
    extra = getattr(new_request.sampling_params, "extra_args", None) or {}
    told = extra.get("kv_transfer_params")
    if not isinstance(told, Mapping) or told.get("do_remote_decode"):
        return False
    where = any(value for name, value in told.items() if str(name).startswith("remote_"))
    return bool(told.get("do_remote_prefill")) or where


def changes_requests(scheduler_output: Any) -> bool:
    """Whether requests come, go on after a preemption, or are done with: in most steps none is.

    Also if that can't be told: whoever reads the requests then finds out. Nothing raises.
    """
    try:
        return bool(
            scheduler_output.scheduled_new_reqs
            or scheduler_output.finished_req_ids
            or scheduler_output.scheduled_cached_reqs.resumed_req_ids
        )
    except Exception:  # noqa: BLE001 - an observer must not harm the server
        return True


def read_requests(scheduler_output: Any, limits: Limits = NO_LIMITS) -> StepRequests:
    """The requests of a step about to run, from the scheduler's output; `limits` are the server's."""
    cached = scheduler_output.scheduled_cached_reqs
    new = [
        NewRequest(
            str(item.req_id),
            prompt_length(item),
            int(item.num_computed_tokens),
            _opted_in(item.sampling_params),
            request_end(item, limits),
            lora_name(item),
        )
        for item in scheduler_output.scheduled_new_reqs
    ]

    def rows() -> RowsOf:
        positions = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        positions.update((item.request_id, item.first_position) for item in new)
        return RowsOf(positions, draft_counts(scheduler_output))

    return StepRequests(
        finished=tuple(scheduler_output.finished_req_ids),
        new=new,
        resumed=frozenset(cached.resumed_req_ids),
        num_tokens=scheduler_output.num_scheduled_tokens,
        rows=rows,
    )


class BatchOrder:
    """Tells the requests of each step in the order of the batch's rows, before its forward pass.

    Runner V2 orders the requests of the scheduler by a function, which is called here as well. Runner V1
    reorders its batch while it prepares a step, and then tells its logits processors. So a processor is added
    that only listens and changes no logits (`argmax-invariant`, vLLM's documented interface for extensions).
    Pooling models have no logits processors: with runner V1 their order can't be told.

    Args:
        ordered: called with the ids, from the thread that enqueues the steps.
        failed: called instead if runner V1 can't be read. This happens in the middle of vLLM's step, where
            nothing may be raised.

    Raises:
        LookupError: the order can't be told in this server.
    """

    def __init__(
        self,
        vllm_config: Any,
        ordered: Callable[[Sequence[str]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        v2 = runs_v2(vllm_config)
        if not v2 and vllm_config.model_config.runner_type == "pooling":
            raise LookupError("model runner V1 doesn't tell the order of a batch of a pooling model")
        self._sort = sorter_v2() if v2 else None
        self._ordered = ordered
        self._failed = failed
        self._processors: list[Any] | None = None
        self._listener: _BatchListener | None = None
        self._asked = False

    def step_begins(self, scheduler_output: Any, model_runner: Any) -> None:
        """A step with tokens is about to run, whose order is wanted."""
        if self._sort is not None:
            self._ordered(self._sort(scheduler_output, model_runner))
            return
        self._asked = True
        processors = model_runner.input_batch.logitsprocs.argmax_invariant
        if processors is not self._processors:
            self.close()
            self._listener = _BatchListener(lambda: self._tell(model_runner))
            self._processors = processors
            processors.append(self._listener)

    def _tell(self, model_runner: Any) -> None:
        if not self._asked:
            return
        self._asked = False
        try:
            order = batch_order(model_runner)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._failed(error)
            return
        self._ordered(order)

    def close(self) -> None:
        """Leave the runner as it was."""
        if self._processors is not None and self._listener in self._processors:
            self._processors.remove(self._listener)
        self._processors = self._listener = None


def batch_order(model_runner: Any) -> list[str]:
    """The requests of runner V1's batch in the order of its rows; valid once the runner has laid it out."""
    return [str(request_id) for request_id in model_runner.input_batch.req_ids]


class _BatchListener:
    """A logits processor, as runner V1 calls it, that only listens."""

    def __init__(self, updated: Callable[[], None]) -> None:
        self._updated = updated

    def is_argmax_invariant(self) -> bool:
        """True: `apply` changes nothing, so the likeliest token stays the likeliest."""
        return True

    def update_state(self, batch_update: Any) -> None:  # noqa: ARG002 - vLLM's interface
        """The batch of a step is laid out. vLLM calls this before the step's forward pass, in every step."""
        self._updated()

    def apply(self, logits: Any) -> Any:
        """The logits as they are."""
        return logits


def why_not_traceable(vllm_config: Any, device_type: str) -> str | None:
    """Why the requests' rows can't be told in this server, or None."""
    if device_type not in ("cpu", "cuda"):
        return f"routing traces are not supported on {device_type}"
    if getattr(vllm_config.model_config, "is_diffusion", False):
        return "routing traces are not supported for diffusion models, which compute their tokens many times"
    lacking = why_no_outcomes(vllm_config)
    if lacking is not None:
        return f"routing traces of accepted drafts can't be told: {lacking}"
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
