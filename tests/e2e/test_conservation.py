"""The law of rows under traffic, DP=2 TP=2 EP=4: it holds, and each way of breaking capture shows at once.

A test-only worker breaks capture in one layer while the server runs: one TP worker drops the layer, or steps
of decode go round its callback. Everything else is the real thing.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from moescope.capture.wire import unpack_counts
from tests.e2e.breaking_worker import BYPASSED_LAYER, DROPPED_LAYER
from tests.e2e.cluster import DP2_EP2, SETTLE_SECONDS, Cluster, prompts
from tests.e2e.reading import ranks
from tests.e2e.replay import Meeting, has_to_show, shows

pytestmark = pytest.mark.e2e

INTERVAL = 1.0


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


def _until(cluster: Cluster, found: Callable[[], Any]) -> Any:
    """What `found` finds, once it is true."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (result := found()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert result, ranks(cluster)
    return result


def _stages(cluster: Cluster) -> list[dict[str, Any]]:
    """The only pipeline stage of each DP rank, as /v1/ranks has it."""
    return [stage for rank in ranks(cluster) for stage in rank["stages"]]


def _mismatches(cluster: Cluster) -> set[tuple[int, str]]:
    return {(found["layer"], found["law"]) for stage in _stages(cluster) for found in stage["mismatches"]}


def _assert_it_shows_in_time(
    cluster: Cluster, file: Path, layer: int, law: str, grown: Callable[[Meeting], int]
) -> None:
    """Break capture. The service says so, with the first frames at which it can, whatever the hour."""
    file.touch()
    broken_at = time.time_ns()
    _until(cluster, lambda: (layer, law) in _mismatches(cluster))
    latest = _until(cluster, lambda: has_to_show(list(cluster.relay.frames), broken_at, grown))
    assert shows(list(cluster.relay.frames), layer, law) <= latest


def _rows(meeting: Meeting, tp_rank: int, layer: int) -> int:
    """Rows of a layer that one TP worker counted."""
    frame = meeting.snapshots[tp_rank]
    return int(unpack_counts(frame.rows)[[found.layer for found in frame.layers].index(layer)])


def test_it_holds_while_requests_run_and_is_compared_again_and_again(cluster: Cluster) -> None:
    with Traffic(cluster):
        compared: dict[int, set[int | None]] = {0: set(), 1: set()}

        def often() -> bool:
            for dp_rank, stage in enumerate(_stages(cluster)):
                compared[dp_rank].add(stage["compared_steps"])
            return all(len(steps) >= 5 for steps in compared.values())

        _until(cluster, often)
        stages = _stages(cluster)
    assert _mismatches(cluster) == set()
    assert [stage["state"] for stage in stages] == ["holds", "holds"], stages
    assert all(layer["not_conserved"] is None for layer in cluster.layers(0).values())


def test_a_tp_worker_that_drops_a_layer_shows_within_two_intervals(cluster: Cluster, folder: Path) -> None:
    with Traffic(cluster):
        _until(cluster, lambda: all(stage["state"] == "holds" for stage in _stages(cluster)))
        _assert_it_shows_in_time(
            cluster,
            folder / "drop",
            DROPPED_LAYER,
            "rows",
            grown=lambda meeting: _rows(
                meeting, 1, DROPPED_LAYER - 1
            ),  # TP rank 1 gets as many in each layer
        )
    assert {layer for layer, _ in _mismatches(cluster)} == {DROPPED_LAYER}
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
        _assert_it_shows_in_time(
            cluster,
            folder / "bypass",
            BYPASSED_LAYER,
            "decode_rows",
            grown=lambda meeting: meeting.snapshots[0].decode_steps,
        )
    laws = {law for layer, law in _mismatches(cluster) if layer == BYPASSED_LAYER}
    assert laws == {"rows", "decode_rows"}
    told = re.findall(
        r"^moescope_conservation_mismatched_layers\{.*\} (\S+)$",
        httpx.get(f"{cluster.service.url}/metrics", timeout=60).text,
        re.MULTILINE,
    )
    assert [float(value) for value in told] == [2, 2]  # both DP ranks
