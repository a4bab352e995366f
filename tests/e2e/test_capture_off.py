"""Real servers whose worker class is somebody else's: one counts, one can't and says so to the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.cluster import Cluster, prompts
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

FOREIGN = "tests.e2e.attachment.foreign"


def options(**env: str) -> dict[str, Any]:
    """Workers in processes of their own, with a worker class and an extension of somebody else."""
    return {
        "worker_class": f"{FOREIGN}.Foreign",
        "extra_args": (
            *("--worker-extension-cls", f"{FOREIGN}.Extension"),
            *("--distributed-executor-backend", "mp"),
        ),
        "env": {"MOESCOPE": "1", "PYTHONPATH": str(Path.cwd()), **env},
    }


def test_a_server_with_somebody_elses_worker_counts_exactly(tmp_path: Path) -> None:
    with Cluster(tmp_path, options(VLLM_WORKER_MULTIPROC_METHOD="spawn")) as cluster:
        cluster.complete_all(prompts(6))
        cluster.assert_exact()


def test_a_server_that_cannot_count_is_known_to_the_service(tmp_path: Path) -> None:
    with Cluster(tmp_path, options(MOESCOPE_ON_ERROR="perhaps")) as cluster:
        cluster.complete_all(prompts(3))
        url = f"{cluster.service.url}/v1/ranks"
        wait_until(lambda: httpx.get(url, timeout=60).json()["deployments"], "the service knows of nobody")
        (deployment,) = cluster.service.get("/v1/ranks")["deployments"]
        assert (deployment["server"], deployment["model"]) == ("e2e", "tiny-moe")
        (rank,) = deployment["dp_ranks"]
        (worker,) = rank["producers"]
        assert (rank["tokens"], worker["state"]) == (None, "disabled")
        assert (
            "MOESCOPE_ON_ERROR: 'perhaps' is none of raise-at-start, raise, disable" in worker["state_reason"]
        )
        metrics = httpx.get(f"{cluster.service.url}/metrics", timeout=60).text
        assert 'moescope_producers{model="tiny-moe",server="e2e",state="disabled"} 1' in metrics
        assert cluster.service.get("/v1/balance")["layers"] == []
    log = (tmp_path / "vllm.log").read_text()
    first = log.index(" in a worker of vLLM ")
    assert 0 < first < log.index("moescope: capture is off")
