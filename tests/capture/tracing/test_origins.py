"""What a trace says of its cached prefix is what vLLM's scheduler did: each block's true writer, or why not."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import ModelConfig

from moescope.capture.seam.block_tables import BlockLayout, BlockReader, StepBlocks, Table
from moescope.capture.tracing.buffer import Trace
from moescope.capture.tracing.origins import BlockOrigins, BlocksOfStep
from moescope.capture.wire.traces import MAX_TAKEN_OVER, TakenOver
from tests.capture.scheduler import Scheduling, full_attention, mamba, model_config, sliding_window

LAYOUT = BlockLayout(group=0, block_size=4, blocks=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return model_config(Path(tmp_path_factory.mktemp("model")))


@dataclass
class Follower:
    """Follows a scheduler as a worker does, and checks each thing that it says of a request's prefix."""

    scheduling: Scheduling
    origins: BlockOrigins = field(default_factory=BlockOrigins)
    traces: dict[str, Trace] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._reader = BlockReader(self.scheduling.config)

    def step(self) -> None:
        output = self.scheduling.schedule()
        blocks = self._reader.read(output, self.scheduling)
        if blocks is not None:
            for table in blocks.tables:
                if is_traced(table.request_id):
                    self.traces.setdefault(table.request_id, Trace(table.request_id, [], 1, 0))
            known = {table.request_id: table for table in blocks.tables}
            before = {name: self.traces[name].reached for name in known if name in self.traces}
            self.origins.follow(BlocksOfStep(blocks, {name: self.traces[name] for name in before}))
            for name, reached in before.items():
                self._check(known[name], reached)
        for name, count in output.num_scheduled_tokens.items():
            if name in self.traces:
                end = self.scheduling.scheduler.requests[name].num_computed_tokens
                assert self.traces[name].reached >= end - count, "a position that nobody speaks of"
                self.traces[name].reached = max(self.traces[name].reached, end)
        self.scheduling.finish(output)

    def _check(self, table: Table, reached: int) -> None:
        said = {
            position: entry
            for entry in self.traces[table.request_id].taken_over
            for position in range(entry.first, entry.first + entry.count)
        }
        size = self._reader._layout.block_size
        for position in range(reached, table.computed):
            place = table.blocks[position // size], position % size
            writer, at, step = self.scheduling.held[place]
            entry = said[position]
            assert at == position, "vLLM has another position in this block"
            if entry.request_id:
                assert entry.request_id == writer
                assert self.scheduling.latest[writer, position] == step, "computed elsewhere since"
            elif entry.why == "computed_again":
                assert writer in self.scheduling.resumed
            else:
                assert entry.why == "not_traced", entry
                assert not is_traced(writer)
            self.said[entry.why or "named"] += 1


def is_traced(name: str) -> bool:
    return not name.endswith("x")


GROUPS: dict[str, list[Any]] = {
    "one group": [full_attention(4)],
    "sliding window too": [full_attention(8), sliding_window(8, 16)],
    "two sizes": [full_attention(16), sliding_window(4, 8)],
    "Mamba too": [full_attention(16), mamba(16)],
}


@pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_every_named_request_computed_just_this(model: ModelConfig, groups: list[Any], v2: bool) -> None:
    """Common prefixes in a small cache: hits, eviction, chunks, preemption, aborts, resets."""
    said: Counter[str] = Counter()
    resumed = 0
    for seed in range(6):
        rng = random.Random(seed)
        scheduling = Scheduling(model, groups, rng.choice([40, 60, 100]), v2=v2)
        follower = Follower(scheduling)
        stems = [[rng.randrange(1, 200) for _ in range(rng.randint(20, 90))] for _ in range(3)]
        for number in range(120):
            if rng.random() < 0.5:
                stem = rng.choice(stems)
                prompt = stem[: rng.randint(1, len(stem))] + [rng.randrange(1, 4)] * rng.randint(1, 5)
                name = f"{number}{rng.choice(['', '', 'x'])}"
                scheduling.add(name, prompt, rng.randint(1, 60), rng.choice([None, None, "salt"]))
            if rng.random() < 0.05 and scheduling.scheduler.running:
                scheduling.abort(rng.choice(scheduling.scheduler.running).request_id)
            if rng.random() < 0.03:
                scheduling.scheduler.reset_prefix_cache(reset_running_requests=True)
            follower.step()
        said += follower.said
        resumed += len(scheduling.resumed)
    print(said, resumed)
    assert said["named"] > 1000, said
    assert said["not_traced"] > 100, said
    assert resumed > 10


