"""What the benchmarks on GPUs do on the host: modes, sets of graphs, blocks of requests, comparisons.

They run vLLM's engine in this process and change its inside. What of vLLM's they touch is played here as
vLLM 0.33 has it; a capture session is a real one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import gpu_graphs
from benchmarks.gpu_engine import Set, have_steps_counted
from benchmarks.gpu_overhead import LOADS, plans_of, summarise
from benchmarks.gpu_processes import compare
from benchmarks.gpu_ranks import Followers, environment_of
from benchmarks.gpu_requests import Requests
from benchmarks.host_share import one_rank, session_of
from moescope.capture.session import CaptureSession
from tests.capture.scheduler import Scheduling, full_attention, model_config


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[CaptureSession, Scheduling]]:
    with one_rank():
        scheduling = Scheduling(model_config(tmp_path), [full_attention(16)], 64, v2=True, max_num_seqs=4)
        session = session_of(scheduling.config, {})
        yield session, scheduling
        session.close()


def test_steps_of_modes_without_capture_are_not_announced_and_others_are(
    serving: tuple[CaptureSession, Scheduling],
) -> None:
    session, scheduling = serving
    scheduling.add("a", [1, 2, 3], tokens=9)
    passes = []
    for on in (False, True, False, True, True):
        have_steps_counted(session, on)
        output = scheduling.schedule()
        session.step_begins(output, SimpleNamespace(kv_cache_config=scheduling.cache, decode_query_len=1))
        session.step_ends()
        scheduling.finish(output)
        passes.append(session.capturer.totals.forward_passes)
    assert passes == [0, 1, 1, 2, 3]


class Queued:
    """An engine with async scheduling: a step enqueues a batch, and takes in an earlier one's output."""

    def __init__(self) -> None:
        self.scheduler = SimpleNamespace(running=[], has_requests=lambda: bool(self._finished))
        self.batch_queue: deque[str] = deque()
        self.taken: list[str] = []
        self._requests: list[str] = []
        self._finished: list[str] = []
        self.engine_core = SimpleNamespace(engine_core=self)

    def add_request(self, name: str, prompt: object, parameters: object) -> None:
        self._requests.append(name)

    def abort_request(self, names: list[str]) -> None:
        self._finished += [name for name in self._requests if name in names]
        self._requests = [name for name in self._requests if name not in names]

    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def step(self) -> None:
        if self._requests:
            self.batch_queue.append(f"step of {' '.join(self._requests)}")
        elif self._finished:
            self.batch_queue.append(f"end of {' '.join(self._finished)}")
            self._finished = []
        if len(self.batch_queue) == 2 or not self._requests:
            self.taken.append(self.batch_queue.popleft())


def test_after_a_drain_nothing_of_a_block_is_left_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    engine = Queued()
    requests = Requests(SimpleNamespace(llm_engine=engine), 100)
    requests.add(2, 5, 8)
    for _ in range(3):
        requests.step()
    assert len(engine.batch_queue) == 1  # a step that is under way
    requests.drain()
    assert not engine.batch_queue
    assert engine.taken == ["step of 1 2"] * 3 + ["end of 1 2"]


def test_a_prefix_cache_that_is_in_use_ends_the_benchmark() -> None:
    llm = SimpleNamespace(llm_engine=Queued(), reset_prefix_cache=lambda: False)
    with pytest.raises(RuntimeError, match="a request is under way"):
        Requests(llm, 100).forget_prefixes()


class Mode(Enum):
    FULL = 1
    PIECEWISE = 2


class Descriptor(NamedTuple):
    mode: Mode
    num_tokens: int


class RunnerV2:
    """Captures graphs as runner V2 does: full ones into its manager, pieces into their wrapper."""

    def __init__(self, wrapper: Any) -> None:
        descriptors = {mode: [Descriptor(mode, tokens) for tokens in (8, 1)] for mode in Mode}
        self.cudagraph_manager = SimpleNamespace(graphs={}, pool="vLLM's", _capture_descs=descriptors)
        self._wrapper, self._count = wrapper, 0

    def capture_model(self) -> None:
        manager = self.cudagraph_manager
        self._count += 1
        for mode, descriptors in manager._capture_descs.items():
            for one in descriptors:
                holds = manager.graphs if mode is Mode.FULL else self._wrapper.concrete_cudagraph_entries
                assert one not in holds
                pool = manager.pool if mode is Mode.FULL else self._wrapper.graph_pool
                holds[one] = (self._count, pool)


def test_sets_of_graphs_of_runner_v2_are_captured_apart_and_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper: Any = SimpleNamespace(concrete_cudagraph_entries={}, graph_pool="vLLM's")
    wrapper = type("Wrapper", (), vars(wrapper))()
    pools = iter(range(10))
    monkeypatch.setattr(gpu_graphs, "wrappers", lambda: [wrapper])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    runner = RunnerV2(wrapper)
    everything = runner.cudagraph_manager._capture_descs
    first = gpu_graphs.capture(runner, None, None)
    second = gpu_graphs.capture(runner, 8, first)
    assert runner.cudagraph_manager._capture_descs is everything
    full, piece = (lambda tokens: Descriptor(Mode.FULL, tokens)), Descriptor(Mode.PIECEWISE, 8)
    for graphs, of_8 in ((first, (1, 0)), (second, (2, 1)), (first, (1, 0))):
        gpu_graphs.install(runner, graphs)
        assert runner.cudagraph_manager.graphs == {full(8): of_8, full(1): (1, 0)}
        assert wrapper.concrete_cudagraph_entries[piece] == (1, 0)


def test_routed_experts_of_vllm_are_switched_on_both_sides() -> None:
    runner, scheduler = (SimpleNamespace(aux_output_connector=side) for side in ("worker's", "scheduler's"))
    runner.cudagraph_manager = None
    own = gpu_graphs.RoutedExperts(runner, scheduler)
    own.switch(False)
    assert (runner.aux_output_connector, scheduler.aux_output_connector) == (None, None)
    own.switch(True)
    assert (runner.aux_output_connector, scheduler.aux_output_connector) == ("worker's", "scheduler's")


def test_loads_are_chosen_by_name() -> None:
    assert {plan.requests for plan in plans_of(LOADS, 1) if plan.steps} == {1, 8, 64, 256}
    assert [plan.name for plan in plans_of(["prefill", "64"], 0.1)] == [
        "prefill, 16384 tokens",
        "decode, batch 64",
    ]
    assert [plan.rounds for plan in plans_of(["8"], 0.1)] == [3]


def test_a_process_that_is_slow_is_found_and_modes_are_compared() -> None:
    times = {"off": [10.0, 10.1, 9.9, 14.0], "moescope": [10.2, 10.1, 10.3, 10.2]}
    rows = [{"batch": 256, "mode": mode, "ms": ms} for mode, values in times.items() for ms in values]
    off, moescope = compare([*rows, {"batch": 8, "mode": "off", "ms": 1.0}], 256)
    assert (off["processes"], off["slow"], moescope["slow"]) == (4, 1, 0)
    assert "change" not in off
    assert moescope["low"] < moescope["change"] < 0 < moescope["high"]
    alike = [row for row in rows if row["ms"] < 14]
    assert compare(alike, 256)[1]["change"] == pytest.approx(2.0, abs=0.01)
    assert "change" not in compare(rows[:5], 256)[1]


def test_a_mode_is_compared_with_the_mean_of_off_and_off_with_itself() -> None:
    """One set of "off" is slower than the rest: its mean is not its median."""
    times = {"off": [10.0, 10.0, 10.3], "moescope": [10.1, 10.1, 10.1]}
    one = {Set(mode, number): ms for mode, values in times.items() for number, ms in enumerate(values)}
    rounds = [one, one, one]
    assert summarise(rounds, "off")["ratio"] == pytest.approx(1.0, abs=1e-12)
    found = summarise(rounds, "moescope")
    assert found["ratio"] == pytest.approx(10.1 / (10.0 * 10.0 * 10.3) ** (1 / 3), abs=1e-12)
    assert found["low"] < found["ratio"] < found["high"]
    assert found["sets"] == pytest.approx([1.01] * 3)


FOLLOWER = """
import json, os, sys
from pathlib import Path
assert sys.argv[1:3] == ["--loads", "8"], sys.argv
out = Path(sys.argv[sys.argv.index("--out") + 1])
names = ("VLLM_DP_RANK", "VLLM_DP_SIZE", "VLLM_DP_MASTER_PORT", "CUDA_VISIBLE_DEVICES")
out.write_text(json.dumps({name: os.environ[name] for name in names}))
"""


def test_the_other_dp_ranks_run_the_same_command_beside_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "follower.py").write_text(FOLLOWER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in environment_of(0, 2, 1):
        monkeypatch.setenv(name, "")
    with Followers("follower", ["--loads", "8"], 3, "http://nowhere", tmp_path) as followers:
        mine = {name: os.environ[name] for name in environment_of(0, 3, 1)}
        theirs = followers.results()
    assert mine["VLLM_DP_RANK"] == mine["CUDA_VISIBLE_DEVICES"] == "0"
    assert theirs.keys() == {1, 2}
    for rank, seen in theirs.items():
        assert seen == {
            "VLLM_DP_RANK": str(rank),
            "VLLM_DP_SIZE": "3",
            "VLLM_DP_MASTER_PORT": mine["VLLM_DP_MASTER_PORT"],
            "CUDA_VISIBLE_DEVICES": str(rank),
        }


def test_a_dp_rank_that_fails_is_told_with_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "follower.py").write_text("raise SystemExit('no GPU')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in environment_of(0, 2, 1):
        monkeypatch.setenv(name, "")
    with (
        Followers("follower", [], 2, "http://nowhere", tmp_path) as followers,
        pytest.raises(RuntimeError, match=r"DP rank 1 failed: no GPU"),
    ):
        followers.results()
