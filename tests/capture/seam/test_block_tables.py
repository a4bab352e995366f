"""Which group of vLLM's cache is followed, what a step changes in its tables, and what hides changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import ModelConfig
from vllm.v1 import kv_cache_interface as kinds
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, KVConnectorOutput, ModelRunnerOutput

from moescope.capture.seam.block_tables import (
    BlockLayout,
    BlockReader,
    Table,
    full_attention_layout,
    received_kv,
)
from tests.capture.scheduler import Scheduling, full_attention, mamba, model_config, sliding_window


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return model_config(Path(tmp_path_factory.mktemp("model")))


def cache(*specs: Any, **of_first: Any) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer.{place}"], spec) for place, spec in enumerate(specs)]
    for name, value in of_first.items():
        setattr(groups[0], name, value)
    return KVCacheConfig(num_blocks=30, kv_cache_tensors=[], kv_cache_groups=groups)


def uniform(*specs: Any) -> kinds.UniformTypeKVCacheSpecs:
    named = {f"layer.{place}": spec for place, spec in enumerate(specs)}
    return kinds.UniformTypeKVCacheSpecs(block_size=specs[0].block_size, kv_cache_specs=named)


def mla(block_size: int) -> kinds.MLAAttentionSpec:
    return kinds.MLAAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)


@pytest.mark.parametrize(
    ("found", "layout"),
    [
        (cache(full_attention(4)), BlockLayout(0, 4, 30)),
        (cache(sliding_window(4, 8), mamba(16), full_attention(8)), BlockLayout(2, 8, 30)),
        (cache(mla(64)), BlockLayout(0, 64, 30)),
        (cache(sliding_window(4, 8), uniform(mla(16), mla(16))), BlockLayout(1, 16, 30)),
        (cache(full_attention(8), full_attention(16), is_eagle_group=True), BlockLayout(1, 16, 30)),
        (cache(full_attention(8), is_eagle_group=True), BlockLayout(0, 8, 30)),
    ],
)
def test_the_group_with_full_attention_is_followed(found: KVCacheConfig, layout: BlockLayout) -> None:
    assert full_attention_layout(found) == layout


def recycling() -> kinds.RSWASpec:
    return kinds.RSWASpec(block_size=4, num_kv_heads=1, head_size=1, dtype=torch.float32, rswa_window=8)


@dataclass(frozen=True, kw_only=True)
class Replaying(kinds.SlidingWindowSpec):
    @property
    def prefix_replay_tokens(self) -> int:
        return 8


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (cache(sliding_window(4, 8), mamba(16)), "no_full_attention"),
        (cache(uniform(sliding_window(4, 8))), "no_full_attention"),
        (cache(), "no_full_attention"),
        (cache(recycling()), "no_full_attention"),
        (cache(full_attention(4), role=kinds.KVCacheGroupRole.HISPARSE_SOURCE), "unknown_cache"),
        (cache(full_attention(4), host_resident=True), "unknown_cache"),
        (
            cache(
                full_attention(4),
                Replaying(block_size=4, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=8),
            ),
            "unknown_cache",
        ),
    ],
)
def test_a_cache_without_a_group_to_follow_has_a_reason(found: KVCacheConfig, why: str) -> None:
    with pytest.raises(LookupError, match=why):
        full_attention_layout(found)


def test_tables_are_told_whole_once_and_then_what_is_appended(model: ModelConfig) -> None:
    scheduling = Scheduling(model, [sliding_window(4, 8), full_attention(4)], 60, group=1)
    reader = BlockReader(scheduling.config)
    scheduling.add("a", list(range(1, 11)), 6)
    told = []
    for _ in range(9):
        output = scheduling.schedule()
        told.append(reader.read(output, scheduling))
        scheduling.finish(output)
    first = told[0]
    assert first is not None
    assert first.layout == BlockLayout(1, 4, 60)
    [table] = first.tables
    assert (table.request_id, table.computed, len(table.blocks)) == ("a", 0, 3)
    appended = [each.appended for each in told[1:] if each is not None and each.appended]
    assert len(appended) == 1  # of 15 positions the last ones need a fourth block
    assert appended[0][0][0] == "a"
    assert [each.finished for each in told[1:] if each is not None and each.finished] == [("a",)]
    assert told.count(None) == 6
    assert all(each is None or each.layout is first.layout for each in told)


def test_what_is_handed_on_unread_says_the_same(model: ModelConfig) -> None:
    scheduling = Scheduling(model, [sliding_window(4, 8), full_attention(4)], 60, group=1)
    reader, reading = BlockReader(scheduling.config), BlockReader(scheduling.config)
    for number in range(3):
        scheduling.add(f"r{number}", list(range(1, 9 + number)), 12)
    found: list[Any] = []
    for _ in range(9):
        output = scheduling.schedule()
        handed_on, told = reader.hand_on(output, scheduling), reading.read(output, scheduling)
        if handed_on is None:
            reader.read(output, scheduling)  # of a cache that it doesn't know yet
        else:
            assert handed_on.appended() == list(told.appended if told else [])
            found += handed_on.appended()
        scheduling.finish(output)
    assert {name for name, _ in found} == {"r0", "r1", "r2"}
    copying: Any = SimpleNamespace(**vars(output))
    copying.kv_cache_block_copies = [SimpleNamespace(src_block_id=1, dst_block_id=2)]
    assert reader.hand_on(output, scheduling) is not None
    assert reader.hand_on(copying, scheduling) is None
    assert reader.hand_on(output, SimpleNamespace(kv_cache_config=None)) is None
    assert reader.hand_on(output, SimpleNamespace()) is None


@pytest.mark.parametrize("v2", [False, True])
def test_a_resumed_request_s_table_is_told_whole(model: ModelConfig, v2: bool) -> None:
    scheduling = Scheduling(model, [full_attention(4)], 60, v2=v2)
    reader = BlockReader(scheduling.config)
    scheduling.add("a", list(range(1, 11)), 30)
    for _ in range(5):
        scheduling.finish(scheduling.schedule())
    scheduling.preempt("a")
    told = reader.read(scheduling.schedule(), scheduling)
    assert told is not None
    [table] = told.tables
    assert (table.request_id, table.computed, len(table.blocks)) == ("a", 12, 4)
    assert told.appended == []


def test_the_table_is_a_copy_since_runner_v1_makes_vllm_s_longer(model: ModelConfig) -> None:
    scheduling = Scheduling(model, [full_attention(4)], 60)
    scheduling.add("a", list(range(1, 11)))
    output = scheduling.schedule()
    told = BlockReader(scheduling.config).read(output, scheduling)
    assert told is not None
    output.scheduled_new_reqs[0].block_ids[0].append(59)
    assert 59 not in told.tables[0].blocks


@dataclass
class Output:
    """A step with one new request and one that needs a block, as an older vLLM has it."""

    finished_req_ids: set[str] = field(default_factory=set)
    scheduled_new_reqs: list[Any] = field(
        default_factory=lambda: [SimpleNamespace(req_id="b", num_computed_tokens=8, block_ids=([1, 2, 3],))]
    )
    scheduled_cached_reqs: Any = field(
        default_factory=lambda: SimpleNamespace(
            req_ids=["a", "c"],
            new_block_ids=[None, ([4],)],
            num_computed_tokens=[3, 4],
            resumed_req_ids=set(),
        )
    )


def config(caching: bool = True, connector: bool = False, pcp: int = 1) -> Any:
    return SimpleNamespace(
        cache_config=SimpleNamespace(enable_prefix_caching=caching),
        kv_transfer_config=SimpleNamespace() if connector else None,
        parallel_config=SimpleNamespace(prefill_context_parallel_size=pcp),
    )


RUNNER = SimpleNamespace(kv_cache_config=cache(full_attention(4)))


def test_without_a_prefix_cache_and_a_connector_there_is_nothing_to_follow() -> None:
    assert BlockReader(config(caching=False)).read(Output(), RUNNER) is None


@pytest.mark.parametrize(
    ("of", "runner", "why"),
    [
        (config(caching=False, connector=True), RUNNER, "kv_transfer"),
        (config(connector=True), RUNNER, "kv_transfer"),  # this vLLM doesn't tell which steps load
        (config(pcp=2), RUNNER, "unknown_cache"),
        (config(), SimpleNamespace(), "unknown_cache"),
        (config(), SimpleNamespace(kv_cache_config=cache(mamba(16))), "no_full_attention"),
    ],
)
def test_what_can_t_be_followed_still_says_how_much_was_cached(of: Any, runner: Any, why: str) -> None:
    told = BlockReader(of).read(Output(), runner)
    assert told is not None
    assert told.layout == BlockLayout(why=why)
    assert told.tables == [Table("b", 8, [])]
    assert told.appended == []
    assert not told.loads


def test_another_cache_is_another_layout() -> None:
    reader = BlockReader(config())
    first = reader.read(Output(), RUNNER)
    again = reader.read(Output(), RUNNER)
    anew = reader.read(Output(), SimpleNamespace(kv_cache_config=cache(full_attention(4))))
    assert first is not None
    assert again is not None
    assert anew is not None
    assert first.layout is again.layout
    assert first.layout is not anew.layout
    assert first.appended == [("c", [4])]


def test_loads_within_a_step_are_told_where_there_is_a_connector() -> None:
    output: Any = Output()
    output.has_sync_kv_loads = True
    told = BlockReader(config(connector=True)).read(output, RUNNER)
    assert told is not None
    assert told.loads
    output.has_sync_kv_loads = False
    told = BlockReader(config(connector=True)).read(output, RUNNER)
    assert told is not None
    assert not told.loads


@pytest.mark.parametrize("name", ["", "_model_runner_output", "model_runner_output"])
@pytest.mark.parametrize(
    ("told", "received"),
    [
        (KVConnectorOutput(finished_recving={"a"}), True),
        (KVConnectorOutput(failed_recving={"a"}), True),
        (KVConnectorOutput(invalid_block_ids={3}), True),
        (KVConnectorOutput(finished_sending={"a"}), False),
        (None, False),
    ],
)
def test_what_a_connector_received_is_seen_in_the_worker_s_output(
    name: str, told: Any, received: bool
) -> None:
    output: Any = ModelRunnerOutput(req_ids=[], req_id_to_index={}, kv_connector_output=told)
    assert received_kv(SimpleNamespace(**{name: output}) if name else output) is received


def test_no_output_received_nothing() -> None:
    assert not received_kv(None)
    assert not received_kv(EMPTY_MODEL_RUNNER_OUTPUT)
