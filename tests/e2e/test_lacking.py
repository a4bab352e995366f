"""On a vLLM that lacks much of what capture looks for, counts are exact, and what is missing is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.cluster import DP2_EP2, Cluster, prompts

pytestmark = pytest.mark.e2e

NO_ORDER = "this vLLM doesn't say which model runner it uses"
NO_PLACEMENT = "where vLLM placed the experts can't be read"


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2, which has answered requests."""
    folder = tmp_path_factory.mktemp("lacking")
    options = DP2_EP2 | {
        "worker_class": "tests.e2e.lacking_worker.LackingWorker",
        "env": {"MOESCOPE_TRACE_RATE": "1", "PYTHONPATH": str(Path.cwd())},
    }
    with Cluster(folder, options, store=folder / "store") as running:
        running.complete_all(prompts(12))
        yield running


def test_counts_are_exact(lacking: Cluster) -> None:
    lacking.assert_exact()


def test_the_workers_say_what_they_can_not_tell(lacking: Cluster) -> None:
    (deployment,) = lacking.service.get("/v1/ranks")["deployments"]
    for rank in deployment["dp_ranks"]:
        assert rank["phases"] is None
        (worker,) = rank["producers"]
        said = worker["unavailable"]
        assert sorted(said) == ["phases", "placement", "steps", "traces"]
        assert NO_ORDER in said["phases"]
        assert NO_ORDER in said["traces"]
        assert NO_PLACEMENT in said["placement"]
        assert NO_PLACEMENT in said["steps"]
        assert worker["state"] == "counting"


def test_the_log_has_it_in_one_line(lacking: Cluster) -> None:
    log = (lacking.vllm.log).read_text()
    lines = [line for line in log.splitlines() if "moescope: not available with vLLM" in line]
    assert len(lines) == 2, lines  # one a worker
    assert all(NO_ORDER in line and NO_PLACEMENT in line for line in lines)


def test_answers_say_why_they_lack_it(lacking: Cluster) -> None:
    by_phase = lacking.service.get("/v1/balance", phase="decode")["layers"]
    assert all(NO_ORDER in layer["over_experts"]["reason"] for layer in by_phase)
    layers = lacking.service.get("/v1/balance")["layers"]
    assert len(layers) == 4
    for layer in layers:
        assert NO_PLACEMENT in layer["over_ep_ranks"]["reason"]
        assert layer["over_experts"]["reason"] is None
    assert NO_PLACEMENT in lacking.service.get("/v1/stragglers")["reason"]
    trace = httpx.get(f"{lacking.service.url}/v1/traces/no-such", timeout=60)
    assert trace.status_code == 404
    assert NO_ORDER in trace.json()["detail"]
