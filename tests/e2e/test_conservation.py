"""The law of rows under traffic, DP=2 TP=2 EP=4: it holds, and each way of breaking capture shows at once.

A test-only worker breaks capture in one layer while the server runs: one TP worker drops the layer, or steps
of decode go round its callback. Everything else is the real thing.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devkit.libraries import missing_compiler, require
from tests.e2e.breaking_worker import BYPASSED_LAYER, DROPPED_LAYER
from tests.e2e.cluster import DP2_EP2, SETTLE_SECONDS, Cluster, prompts
from tests.e2e.reading import ranks

pytestmark = pytest.mark.e2e

INTERVAL = 1.0
SNAPSHOTS = 4
"""A busy worker takes two snapshots in an interval at most, so these are of two intervals."""


class Traffic:
    """Requests without a pause, until it is left."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._cluster.complete_all(prompts(4), concurrency=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("break")


@pytest.fixture(scope="module")
def cluster(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require(missing_compiler())
    options = {
        **DP2_EP2,
        "env": {
            "BREAK_FOLDER": str(folder),
            "MOESCOPE_INTERVAL": str(INTERVAL),
            "PYTHONPATH": str(Path.cwd()),
        },
        "worker_class": "tests.e2e.breaking_worker.BreakingWorker",
        "extra_args": ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"),
    }
    with Cluster(tmp_path_factory.mktemp("cluster"), options) as running:
        yield running


def _until(cluster: Cluster, found: Callable[[list[dict[str, Any]]], Any]) -> Any:
    """What `found` finds in the DP ranks of /v1/ranks, once it is true."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (result := found(ranks(cluster))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert result, ranks(cluster)
    return result


def _mismatches(dp_ranks: list[dict[str, Any]]) -> set[tuple[int, str]]:
    return {
        (found["layer"], found["law"])
        for rank in dp_ranks
        for stage in rank["stages"]
        for found in stage["mismatches"]
    }


def _snapshots_until_it_shows(cluster: Cluster, file: Path, layer: int, law: str) -> int:
    """Break capture; the most snapshots that any worker has sent by the time that it shows in the layer."""
    before = time.time_ns()
    file.touch()
    _until(cluster, lambda found: (layer, law) in _mismatches(found))
    frames = {
        (frame.producer.key, frame.captured_at_ns)
        for frame in cluster.relay.frames
        if frame.captured_at_ns > before
    }
    return max(Counter(key for key, _ in frames).values())


def test_it_holds_while_requests_run_and_is_compared_again_and_again(cluster: Cluster) -> None:
    with Traffic(cluster):
        compared = set()

        def often(found: list[dict[str, Any]]) -> bool:
            compared.update(
                (rank["dp_rank"], stage["compared_steps"]) for rank in found for stage in rank["stages"]
            )
            return min(Counter(rank for rank, _ in compared).values(), default=0) >= 5

        _until(cluster, often)
        stages = [stage for rank in ranks(cluster) for stage in rank["stages"]]
    assert _mismatches(ranks(cluster)) == set()
    assert [stage["state"] for stage in stages] == ["holds", "holds"], stages
    assert all(layer["not_conserved"] is None for layer in cluster.layers(0).values())


def test_a_tp_worker_that_drops_a_layer_shows_within_two_intervals(cluster: Cluster, folder: Path) -> None:
    with Traffic(cluster):
        _until(cluster, lambda found: all(s["state"] == "holds" for rank in found for s in rank["stages"]))
        taken = _snapshots_until_it_shows(cluster, folder / "drop", DROPPED_LAYER, "rows")
    assert taken <= SNAPSHOTS
    assert {layer for layer, _ in _mismatches(ranks(cluster))} == {DROPPED_LAYER}
    told = {layer: item["not_conserved"] for layer, item in cluster.layers(0).items()}
    assert [layer for layer, why in told.items() if why] == [DROPPED_LAYER], told
    balance = cluster.service.get("/v1/balance")["layers"]
    cells = {item["layer"]: item["over_ep_ranks"] for item in balance}
    assert cells[DROPPED_LAYER]["measures"] is None
    assert "add up" in cells[DROPPED_LAYER]["reason"]
    assert cells[1]["measures"] is not None


def test_decode_that_goes_round_the_callback_shows_within_two_intervals(
    cluster: Cluster, folder: Path
) -> None:
    with Traffic(cluster):
        taken = _snapshots_until_it_shows(cluster, folder / "bypass", BYPASSED_LAYER, "decode_rows")
    assert taken <= SNAPSHOTS
    laws = {law for layer, law in _mismatches(ranks(cluster)) if layer == BYPASSED_LAYER}
    assert laws == {"rows", "decode_rows"}
    told = re.findall(
        r"^moescope_conservation_mismatched_layers\{.*\} (\S+)$",
        httpx.get(f"{cluster.service.url}/metrics", timeout=60).text,
        re.MULTILINE,
    )
    assert [float(value) for value in told] == [2, 2]  # both DP ranks
