"""What vLLM's runners return of a sampled step, in the classes that they return it in."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.gpu.async_utils import AsyncOutput
from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput


class Event:
    """Stands for the event of a copy on a GPU: it has happened once somebody says so."""

    def __init__(self, happened: bool = True) -> None:
        self.happened = happened

    def query(self) -> bool:
        """Whether it has happened."""
        return self.happened

    def synchronize(self) -> None:
        """Nobody of ours may wait."""
        raise AssertionError("the step's path waits")


def scheduled(
    tokens: dict[str, int],
    drafts: dict[str, int] | None = None,
    new: dict[str, dict[str, Any]] | None = None,
    finished: Sequence[str] = (),
    resumed: dict[str, int] | None = None,
    computed: dict[str, int] | None = None,
) -> Any:
    """A scheduler's output: tokens by request, of them drafts; new requests with their fields."""
    resumed, new = resumed or {}, new or {}
    cached = [name for name in tokens if name not in new]
    return SimpleNamespace(
        total_num_scheduled_tokens=sum(tokens.values()),
        num_scheduled_tokens=tokens,
        scheduled_spec_decode_tokens={name: [-1] * number for name, number in (drafts or {}).items()},
        finished_req_ids=set(finished),
        scheduled_new_reqs=[_new(name, **fields) for name, fields in new.items()],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached,
            resumed_req_ids=set(resumed),
            num_computed_tokens=[(computed or {}).get(name, 0) for name in cached],
            num_output_tokens=[resumed.get(name, 0) for name in cached],
        ),
    )


def _new(
    name: str,
    prompt: int,
    max_tokens: int | None = None,
    stops: Sequence[int] = (),
    eos: int | None = None,
    pattern: Any = None,
    min_tokens: int = 0,
) -> Any:
    params = SimpleNamespace(
        max_tokens=max_tokens,
        stop_token_ids=list(stops),
        _eos_token_id=eos,
        extra_args={},
        repetition_detection=pattern,
        min_tokens=min_tokens,
    )
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=[0] * prompt,
        prompt_embeds=None,
        prefill_token_ids=None,
        num_computed_tokens=0,
        sampling_params=params,
    )


def of_v1(tokens: dict[str, list[int]]) -> ModelRunnerOutput:
    """Runner V1 without asynchronous scheduling."""
    names = list(tokens)
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=[list(row) for row in tokens.values()],
    )


def of_v1_async(
    tokens: dict[str, list[int]], width: int, invalid: Sequence[int] = (), event: Event | None = None
) -> Any:
    """Runner V1 with asynchronous scheduling."""
    made: Any = AsyncGPUModelRunnerOutput.__new__(AsyncGPUModelRunnerOutput)
    made._model_runner_output = SimpleNamespace(req_ids=list(tokens))
    made._invalid_req_indices, made.vocab_size = list(invalid), 1000
    rows = [row + [-1] * (width - len(row)) for row in tokens.values()]
    made.sampled_token_ids_cpu = torch.tensor(rows, dtype=torch.int32)
    made.async_copy_ready_event = event or Event()
    return made


def of_v2(tokens: dict[str, list[int]], width: int, event: Event | None = None) -> Any:
    """Runner V2: what is behind the sampled tokens of a row is left over from other steps."""
    made: Any = AsyncOutput.__new__(AsyncOutput)
    made.model_runner_output = SimpleNamespace(req_ids=list(tokens))
    rows = [row + [77] * (width - len(row)) for row in tokens.values()]
    made.sampled_token_ids = np.array(rows, np.int64)
    made.num_sampled_tokens_np = np.array([len(row) for row in tokens.values()], np.int32)
    made.copy_event = event or Event()
    return made
