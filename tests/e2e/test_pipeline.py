"""Pipeline parallelism: each stage reports its own layers, none is lost, and a trace has all of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.cluster import SETTLE_SECONDS, Cluster, Request, prompts
from tests.e2e.traces import all_traces, ask_as, check_client, joined, npz, wire_counts

pytestmark = pytest.mark.e2e


def delivered(cluster: Cluster, expected: int) -> list[int]:
    """Traces that each worker has delivered, once they are as many as expected or time is up."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        [rank] = cluster.service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
        found = [producer["traces"]["delivered"] for producer in rank["producers"]]
        if set(found) == {expected} or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


OPTIONS: dict[str, Any] = {"max_num_batched_tokens": 64, "env": {"MOESCOPE_TRACE_RATE": "1"}}
STAGES = ("--pipeline-parallel-size", "2", "--distributed-executor-backend", "mp")


def of_one_request(cluster: Cluster) -> dict[str, Any]:
    """The joined routing of a request that is alone on its server, in three chunks and some decode steps."""
    ask_as(cluster, "alone", Request("the quick brown fox " * 8, 6))
    return joined(cluster, "alone")


@pytest.fixture(scope="module")
def of_one_stage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same request's routing on a server without pipeline parallelism."""
    folder = tmp_path_factory.mktemp("one-stage")
    with Cluster(folder, OPTIONS, store=folder / "store") as cluster:
        return of_one_request(cluster)


def test_stages_report_their_own_layers_and_traces_join(tmp_path: Path, of_one_stage: dict[str, Any]) -> None:
    with Cluster(tmp_path, {**OPTIONS, "extra_args": STAGES}, store=tmp_path / "store") as cluster:
        cluster.complete_all(prompts(11))
        of_both = of_one_request(cluster)
        assert (of_both["missing"], of_one_stage["missing"]) == ([], [])
        assert of_both["layers"] == of_one_stage["layers"] == [1, 2, 3, 4]
        assert len(of_both["routed_experts"]) == 160 + 6 - 1
        np.testing.assert_array_equal(of_both["routed_experts"], of_one_stage["routed_experts"])
        check_client(cluster.service.url, {"alone": of_both})
        # The account of traces comes with a later frame than the counts, from each stage in its own time.
        assert delivered(cluster, 12) == [12, 12]
        cluster.assert_exact()
        [rank] = cluster.service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
        stages = {producer["pp_rank"]: producer["layers"] for producer in rank["producers"]}
        assert stages == {0: [1, 2], 1: [3, 4]}
        assert not any(producer["absent"] for producer in rank["producers"])  # nor the other stage's layers
        traces = all_traces(cluster)
        assert len(traces) == 12
        counts = {layer: np.zeros(16, np.int64) for layer in (1, 2, 3, 4)}
        for trace in traces:
            found = npz(cluster, trace["request_id"])
            experts = found["routed_experts"][found["times_computed"] > 0]
            assert found["layers"].tolist() == [1, 2, 3, 4]
            assert experts.min() >= 0
            assert len(experts) == trace["tokens"]
            for i, layer in enumerate(counts):
                counts[layer] += np.bincount(experts[:, i].ravel(), minlength=16)
        assert {layer: found.tolist() for layer, found in wire_counts(cluster)[0].items()} == {
            layer: found.tolist() for layer, found in counts.items()
        }
