"""Two deployments of one model serve at once on the same GPUs and send to one place: nothing is mixed up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from devkit.frame_sink import FrameSink
from devkit.processes import ProcessGroup
from tests.gpu.accounts import by_layer, by_worker, describe, settled
from tests.gpu.deployments import CHILD, PAIR, PASS_WORKER
from tests.gpu.runs import TIMEOUT, failure, start

SCENARIOS = PAIR


class Pair:
    """The two deployments, which stay up, and the one place where their frames go."""

    def __init__(self, folder: Path) -> None:
        self.sink = FrameSink()
        self.folders = {name: folder / str(index) for index, name in enumerate(PAIR)}
        self.groups: dict[str, ProcessGroup] = {}

    def start(self) -> None:
        for name, scenario in PAIR.items():
            endpoint = {"endpoint": self.sink.url, "server": name}
            self.groups[name] = start(self.folders[name], scenario, CHILD, worker=PASS_WORKER, **endpoint)

    def results(self) -> dict[str, Any]:
        """What each must have computed, and its workers' accounts; all of them are up."""
        deadline = time.monotonic() + TIMEOUT
        for name, folder in self.folders.items():
            while not (folder / "result.json").exists():
                code = self.groups[name].exit_code()
                if code is not None or time.monotonic() > deadline:
                    pytest.fail(failure(folder, f"{name}: status {code}"), pytrace=False)
                time.sleep(0.2)
        found = {}
        for name, folder in self.folders.items():
            expected = json.loads((folder / "result.json").read_text())
            frames = settled(self.sink, expected["computed"], 2, name)
            found[name] = expected | {"workers": [describe(mine) for _, mine in sorted(frames.items())]}
        assert all(group.exit_code() is None for group in self.groups.values())
        return found

    def stop(self) -> None:
        for group in self.groups.values():
            group.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FrameSink, dict[str, Any]]]:
    both = Pair(tmp_path_factory.mktemp("pair"))
    try:
        both.start()
        yield both.sink, both.results()
    finally:
        both.stop()


@pytest.mark.parametrize("name", PAIR)
def test_each_counts_its_own_tokens(pair: tuple[FrameSink, dict[str, Any]], name: str) -> None:
    run = pair[1][name]
    assert len(run["workers"]) == 2
    for dp, (computed, decode) in enumerate(zip(run["computed"], run["decode"], strict=True)):
        assert computed > 500
        assert by_layer(run["workers"], dp, "rows") == dict.fromkeys(range(4), computed)
        assert by_layer(run["workers"], dp, "decode_rows") == dict.fromkeys(range(4), decode)
        slots = {layer: sum(counts) for layer, counts in by_layer(run["workers"], dp, "counts").items()}
        assert slots == dict.fromkeys(range(4), 4 * computed)


@pytest.mark.parametrize("name", PAIR)
def test_the_loads_of_each_ones_steps_are_its_counts(
    pair: tuple[FrameSink, dict[str, Any]], name: str
) -> None:
    for worker in pair[1][name]["workers"]:
        assert worker["drops"]["steps_lost"] == 0
        assert len(worker["loads"]) == worker["steps"][0]
        assert np.sum(list(worker["loads"].values()), axis=0).tolist() == worker["placed"]


def test_their_workers_differ_in_the_deployments_name(pair: tuple[FrameSink, dict[str, Any]]) -> None:
    sink, runs = pair
    assert {frame.producer.model for frame in sink.frames} == {"pair"}
    assert {frame.producer.server for frame in sink.frames} == set(PAIR)
    assert all(len(by_worker(sink.frames, name)) == 2 for name in PAIR)
    totals = [sum(run["computed"]) for run in runs.values()]
    assert totals[0] != totals[1]  # so that one's counts under the other's name would show
