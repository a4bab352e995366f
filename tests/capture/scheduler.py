"""vLLM's own scheduler, without a model, and a cache that remembers who computed what its blocks hold."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from devkit.tiny_moe import make_checkpoint


def full_attention(block_size: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)


def sliding_window(block_size: int, window: int) -> SlidingWindowSpec:
    return SlidingWindowSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=window
    )


def model_config(folder: Path) -> ModelConfig:
    """Of a small MoE, which is written to the folder."""
    return ModelConfig(model=str(make_checkpoint(folder)), dtype="float32", max_model_len=512)


def mamba(block_size: int) -> MambaSpec:
    """States at the ends of blocks, which lets a prefix end within a block of full attention."""
    return MambaSpec(block_size=block_size, shapes=((1,),), dtypes=(torch.float32,), mamba_cache_mode="align")


class Scheduling:
    """A scheduler whose steps are taken for computed at once.

    Args:
        groups: the kinds of the groups of the KV cache.
        blocks: of the cache.
        group: of which group `held` and `latest` tell.
        v2: whether it talks to model runner V2.
        finer: how many hashes vLLM makes of a block's tokens.
        loading: whether a KV connector has whatever is asked for (see `LoadingConnector`).
        options: of `SchedulerConfig`.

    Attributes:
        config: vLLM's configuration.
        cache: its KV cache; a model runner has it as ``kv_cache_config``.
        held: by (block, offset) what the cache has: the request that computed it, its position, and in
            which step.
        latest: by (request, position) the last step that computed it.
        resumed: requests that went on after a preemption.
        resets: how often the prefix cache was reset.
        copies: how many blocks were copied, since a request needed their beginning only.
        arriving: by request, the step in which it has what a connector loads for it.
        loaded: how often a connector loaded within a step (False), and for a request that waited (True).
    """

    def __init__(
        self,
        model_config: ModelConfig,
        groups: list[Any],
        blocks: int,
        group: int = 0,
        v2: bool = False,
        finer: int = 1,
        loading: bool = False,
        **options: Any,
    ) -> None:
        sizes = [spec.block_size for spec in groups]
        hashed = min(sizes) // finer
        mode = "align" if any(isinstance(spec, MambaSpec) for spec in groups) else "none"
        cache = CacheConfig(block_size=max(sizes), enable_prefix_caching=True, mamba_cache_mode=mode)
        cache.num_gpu_blocks = blocks
        scheduling = {"max_num_seqs": 8, "max_num_batched_tokens": 64} | options
        connector = KVTransferConfig(
            kv_connector="LoadingConnector",
            kv_connector_module_path="tests.capture.loading_connector",
            kv_role="kv_both",
        )
        self.config = VllmConfig(
            kv_transfer_config=connector if loading else None,
            model_config=model_config,
            cache_config=cache,
            scheduler_config=SchedulerConfig(
                max_model_len=512,
                enable_chunked_prefill=True,
                is_encoder_decoder=False,
                async_scheduling=False,
                **scheduling,
            ),
        )
        self.cache = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(groups)],
        )
        self.scheduler = Scheduler(
            self.config,
            self.cache,
            StructuredOutputManager(self.config),
            block_size=max(sizes),
            hash_block_size=hashed,
        )
        self.scheduler.use_v2_model_runner = v2
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(hashed, sha256)
        self._group, self._size = group, sizes[group]
        self.kv_cache_config = self.cache
        self.held: dict[tuple[int, int], tuple[str, int, int]] = {}
        self.latest: dict[tuple[str, int], int] = {}
        self.resumed: set[str] = set()
        self.copies = self.steps = self.resets = 0
        self.arriving: dict[str, int] = {}
        self.loaded: Counter[bool] = Counter()
        self._seen: set[str] = set()

    def add(self, name: str, prompt: list[int], tokens: int = 4, salt: str | None = None) -> None:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self.scheduler.add_request(
            Request(name, prompt, params, None, cache_salt=salt, block_hasher=self._hasher)
        )

    def schedule(self) -> SchedulerOutput:
        """A step, computed at once: what its requests' blocks hold is noted before anybody asks."""
        output = self.scheduler.schedule()
        self.steps += 1
        for request in output.scheduled_new_reqs:
            if request.req_id in self._seen:
                self.resumed.add(request.req_id)
            self._seen.add(request.req_id)
        self.resumed |= output.scheduled_cached_reqs.resumed_req_ids
        self._load()
        for copy in output.kv_cache_block_copies or ():
            self.copies += 1
            for offset in range(self._size):
                if (copy.src_block_id, offset) in self.held:
                    self.held[copy.dst_block_id, offset] = self.held[copy.src_block_id, offset]
        for name, count in output.num_scheduled_tokens.items():
            blocks = self.scheduler.kv_cache_manager.get_block_ids(name)[self._group]
            end = self.scheduler.requests[name].num_computed_tokens
            for position in range(end - count, end):
                place = blocks[position // self._size], position % self._size
                self.held[place] = name, position, self.steps
                self.latest[name, position] = self.steps
        return output

    def _load(self) -> None:
        """What a connector loads is in its blocks at once, also if the scheduler hears of it later."""
        connector: Any = self.scheduler.connector
        if connector is None:
            return
        loads, connector.loads = connector.loads, []
        for load in loads:
            for position in range(load.first, load.end):
                place = load.blocks[position // self._size], position % self._size
                self.held[place] = "", position, self.steps
            self.loaded[load.waits] += 1
            if load.waits:
                self.arriving[load.request_id] = self.steps + 1 + self.steps % 3

    def received(self) -> KVConnectorOutput | None:
        """What arrives in this step for requests that wait."""
        names = {name for name, step in self.arriving.items() if step <= self.steps}
        for name in names:
            del self.arriving[name]
        return KVConnectorOutput(finished_recving=names) if names else None

    def finish(
        self, output: SchedulerOutput, token: int = 7, received: KVConnectorOutput | None = None
    ) -> None:
        """The step's results: each request whose prompt is computed gets a token."""
        names = list(output.num_scheduled_tokens)
        sampled = []
        for name in names:
            request = self.scheduler.requests[name]
            is_done = request.num_computed_tokens >= request.num_tokens
            sampled.append([token] if is_done else [])
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: place for place, name in enumerate(names)},
                sampled_token_ids=sampled,
                kv_connector_output=received,
            ),
        )

    @property
    def may_reset(self) -> bool:
        """Whether the prefix cache may be reset: no request holds blocks that a connector fills.

        Such a request can't be preempted, and vLLM refuses the reset. It goes on to hold them until it runs.
        """
        running = {request.request_id for request in self.scheduler.running}
        waiting = set(self.scheduler.requests) - running
        blocks = self.scheduler.kv_cache_manager.get_block_ids
        return not any(any(blocks(name)) for name in waiting)

    def reset(self) -> None:
        """The prefix cache is reset; running requests are preempted."""
        self.scheduler.reset_prefix_cache(reset_running_requests=True)
        self.resets += 1

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def preempt(self, name: str) -> None:
        """As for one with a higher priority: its blocks stay in the prefix cache for now."""
        request = self.scheduler.requests[name]
        self.scheduler.running.remove(request)
        self.scheduler._preempt_request(request, time.monotonic())
