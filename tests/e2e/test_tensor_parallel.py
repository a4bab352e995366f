"""DP=2 TP=2 EP=4: four workers; each TP worker's router sees its own padded shard of the tokens.

The shards add up, in counts and in traces, and the law of rows compares them under traffic. Then a test-only
worker breaks capture in one layer while the server runs: one TP worker drops the layer, or steps of decode go
round its callback. Everything else is the real thing.
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

from devkit.vllm_server import MODEL_NAME
from moescope.capture.wire import unpack_counts
from moescope.capture.wire.traces import decode_part
from tests.e2e.broken_layers import BYPASSED_LAYER, DROPPED_LAYER
from tests.e2e.cluster import DP2_EP2, SETTLE_SECONDS, Cluster, prompts
from tests.e2e.reading import ranks
from tests.e2e.replay import Meeting, has_to_show, shows
from tests.e2e.traces import all_traces, npz, settled

pytestmark = pytest.mark.e2e


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
def tp2(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Traces those requests that ask for it; nothing is broken until a file in the folder says so."""
    home: Path = tmp_path_factory.mktemp("tp2")
    options = {
        **DP2_EP2,
        "env": {
            "BREAK_FOLDER": str(folder),
            "MOESCOPE_INTERVAL": "0.5",
            "MOESCOPE_TRACE_OPT_IN": "1",
            "PYTHONPATH": str(Path.cwd()),
        },
        "worker_class": "tests.e2e.breaking_worker.BreakingWorker",
        "extra_args": ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"),
    }
    with Cluster(home, options, store=home / "store") as running:
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


def test_shards_add_up(tp2: Cluster) -> None:
    tp2.complete_all(prompts(12, stride=5))
    tp2.assert_exact()
    producers = [producer for rank in ranks(tp2) for producer in rank["producers"]]
    assert len(producers) == 4
    rows_by_worker = {
        (frame.producer.dp_rank, frame.producer.tp_rank): unpack_counts(frame.rows).tolist()
        for frame in tp2.relay.frames
    }
    assert all(min(rows) > 0 for rows in rows_by_worker.values()), rows_by_worker


def test_sampling_and_opt_in(tp2: Cluster) -> None:
    """The shards of one rank's workers make one trace; only those that ask for it."""
    tp2.complete_all(prompts(4))
    answer = httpx.post(
        f"{tp2.vllm.url}/v1/completions",
        json={
            "model": MODEL_NAME,
            "prompt": "trace me please",
            "max_tokens": 8,
            "vllm_xargs": {"moescope_trace": 1},
        },
        timeout=300,
    ).json()
    settled(tp2)
    computed = answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"] - 1
    deadline = time.monotonic() + SETTLE_SECONDS  # the rank's workers deliver each in its own time
    while [entry["tokens"] for entry in all_traces(tp2)] != [computed] and time.monotonic() < deadline:
        time.sleep(0.1)
    [entry] = all_traces(tp2)
    assert answer["id"] in entry["names"]
    assert entry["tokens"] == computed
    assert npz(tp2, answer["id"])["times_computed"].tolist() == [1] * computed
    assert len({decode_part(body).producer.tp_rank for body in tp2.relay.trace_bodies}) == 2


def test_it_holds_while_requests_run_and_is_compared_again_and_again(tp2: Cluster) -> None:
    with Traffic(tp2):
        compared: dict[int, set[int | None]] = {0: set(), 1: set()}

        def often() -> bool:
            for dp_rank, stage in enumerate(_stages(tp2)):
                compared[dp_rank].add(stage["compared_steps"])
            return all(len(steps) >= 5 for steps in compared.values())

        _until(tp2, often)
        stages = _stages(tp2)
    assert _mismatches(tp2) == set()
    assert [stage["state"] for stage in stages] == ["holds", "holds"], stages
    assert all(layer["not_conserved"] is None for layer in tp2.layers(0).values())


def test_a_tp_worker_that_drops_a_layer_shows_at_once(tp2: Cluster, folder: Path) -> None:
    with Traffic(tp2):
        _until(tp2, lambda: all(stage["state"] == "holds" for stage in _stages(tp2)))
        _assert_it_shows_in_time(
            tp2,
            folder / "drop",
            DROPPED_LAYER,
            "rows",
            grown=lambda meeting: _rows(meeting, 1, DROPPED_LAYER - 1),  # it gets as many in each layer
        )
    assert {layer for layer, _ in _mismatches(tp2)} == {DROPPED_LAYER}
    told = {layer: item["not_conserved"] for layer, item in tp2.layers(0).items()}
    assert [layer for layer, why in told.items() if why] == [DROPPED_LAYER], told
    balance = tp2.service.get("/v1/balance")["layers"]
    cells = {item["layer"]: item["over_ep_ranks"] for item in balance}
    assert cells[DROPPED_LAYER]["measures"] is None
    assert "add up" in cells[DROPPED_LAYER]["reason"]
    assert cells[1]["measures"] is not None


def test_decode_that_goes_round_the_callback_shows_at_once(tp2: Cluster, folder: Path) -> None:
    with Traffic(tp2):
        _assert_it_shows_in_time(
            tp2,
            folder / "bypass",
            BYPASSED_LAYER,
            "decode_rows",
            grown=lambda meeting: meeting.snapshots[0].decode_steps,
        )

    def told() -> bool:
        laws = {law for layer, law in _mismatches(tp2) if layer == BYPASSED_LAYER}
        mismatched = re.findall(
            r"^moescope_conservation_mismatched_layers\{.*\} (\S+)$",
            httpx.get(f"{tp2.service.url}/metrics", timeout=60).text,
            re.MULTILINE,
        )
        both_dp_ranks = [float(value) for value in mismatched] == [2, 2]
        return laws == {"rows", "decode_rows"} and both_dp_ranks

    _until(tp2, told)
