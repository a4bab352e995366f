"""DP=2 TP=2 EP=4: four workers; each TP worker's router sees its own padded shard of the tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from devkit.vllm_server import MODEL_NAME
from moescope.capture.wire import unpack_counts
from moescope.capture.wire.traces import decode_part
from tests.e2e.cluster import DP2_EP2, SETTLE_SECONDS, Cluster, prompts
from tests.e2e.reading import ranks
from tests.e2e.traces import all_traces, npz, settled

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def tp2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Traces those requests that ask for it."""
    folder: Path = tmp_path_factory.mktemp("tp2")
    options = {
        **DP2_EP2,
        "env": {"MOESCOPE_TRACE_OPT_IN": "1"},
        "extra_args": ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"),
    }
    with Cluster(folder, options, store=folder / "store") as running:
        yield running


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
