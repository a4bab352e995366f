"""A KV connector, as vLLM's scheduler sees it, that has more or less of anything: whole blocks, at random."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)


class Load(NamedTuple):
    """The positions from ``first`` up to ``end`` of a request, which come into these blocks."""

    request_id: str
    blocks: list[int]
    first: int
    end: int
    waits: bool


class LoadingConnector(KVConnectorBase_V1):
    """Every other new request gets some blocks; half of these requests wait for them.

    Attributes:
        loads: what is to be loaded since somebody took this list.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._rng = random.Random(0)
        self._size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._asked: dict[str, tuple[int, bool]] = {}
        self.loads: list[Load] = []

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        most = (request.num_tokens - 1 - num_computed_tokens) // self._size
        blocks = self._rng.choice([0, self._rng.randint(0, max(most, 0))])
        waits = blocks > 0 and self._rng.random() < 0.5
        self._asked[request.request_id] = num_computed_tokens, waits
        return blocks * self._size, waits

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            first, waits = self._asked[request.request_id]
            [table] = blocks.get_block_ids()
            end = first + num_external_tokens
            self.loads.append(Load(request.request_id, list(table), first, end, waits))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        raise NotImplementedError("there is no worker")

    wait_for_layer_load = save_kv_layer = wait_for_save = start_load_kv  # type: ignore[assignment]
