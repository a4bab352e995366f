"""What the README and the tutorials say about a real vLLM, run with one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from devkit.processes import free_port
from devkit.vllm_server import MODEL_NAME
from moescope.client import Client
from tests.docs.shell import ROOT, typed, words_of
from tests.e2e.cluster import DP2_EP2, Cluster

pytestmark = pytest.mark.e2e

ENV = {"MOESCOPE": "1", "MOESCOPE_TRACE_OPT_IN": "1"}


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2 with the plugin; requests may ask for their trace."""
    folder: Path = tmp_path_factory.mktemp("attached")
    options = {**DP2_EP2, "worker_class": None, "env": ENV}
    with Cluster(folder, options, store=folder / "store") as running:
        yield running


@pytest.mark.parametrize("document", ["README.md", "docs/install.md", "docs/tutorial-replay.md"])
def test_the_lines_for_vllm_are_those_that_ran(attached: Cluster, document: str) -> None:
    (line,) = [line for line in typed(document) if "vllm serve" in line]
    env, words = words_of(line)
    assert env.items() <= ENV.items()
    assert words[:3] == ["vllm", "serve", "MODEL"]
    ran = attached.vllm.options.command(0)
    flags = " ".join(words[3:]).replace("--data-parallel-size 8", "--data-parallel-size 2").split(" --")
    assert all(f"--{flag.removeprefix('--')}" in " ".join(ran) for flag in flags), ran
    attached.complete_all([])
    attached.assert_exact()


def test_a_rollout_is_fetched(attached: Cluster) -> None:
    """The tutorial's request, and the tutorial's Python for its rows."""
    (line,) = [line for line in typed("docs/tutorial-replay.md") if line.startswith("curl")]
    asked = line.replace("http://127.0.0.1:8000", attached.vllm.url).replace("MODEL", MODEL_NAME)
    done = subprocess.run(["bash", "-c", asked], check=True, capture_output=True, text=True)
    tokens = int(re.search(r'"total_tokens":(\d+)', done.stdout)[1])  # type: ignore[index]
    text = (ROOT / "docs/tutorial-replay.md").read_text()
    first, *_ = re.findall(r"^```python\n(.*?)^rows = ", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"__name__": "snippet"}
    exec(first.replace("http://localhost:9890", attached.service.url), names)
    rows = names["routing_of"]("rollout-7", tokens)  # type: ignore[operator]
    client = cast(Client, names["client"])
    trace = client.trace("rollout-7")
    client.close()
    assert trace.is_whole
    for place, layer in enumerate(trace.layers):
        np.testing.assert_array_equal(rows[:, layer, : trace.top_k[place]], trace.experts[:, place])
    assert len(rows) == tokens - 1


def test_the_demo_counts_every_slot() -> None:
    """`make demo`; it ends by itself, and fails if a slot is missing."""
    command = ["make", "demo", f"ARGS=--requests 20 --exit --port {free_port()}"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("(conserved)") == 4
