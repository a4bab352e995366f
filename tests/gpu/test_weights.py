"""Weights that change on a GPU: reloads, sleep at both levels, CUDA graphs on. And the kernels of gpt-oss.

Each scenario is one process: a minute at most, alone on a GPU.
"""

from __future__ import annotations

import sys

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from devkit.gpu_models import gpt_oss
from tests.gpu.engines import CHILD, IN_PROCESS, ROUTED, ROUTED_LLM
from tests.gpu.runs import Runs
from tests.gpu.scenario import DEFAULT, VOCABULARY, Scenario, needed
from tests.gpu.weights_child import CHANGES

WEIGHTS_CHILD = [sys.executable, "-m", "tests.gpu.weights_child"]
ASLEEP = {"enable_sleep_mode": True}
MODEL = gpt_oss(layers=2, vocabulary=VOCABULARY)
FEW = {"long": 4, "short": 8, "longest": 200, "vocabulary": VOCABULARY}
CHANGING = {
    "graphs": Scenario(DEFAULT | ROUTED_LLM | ASLEEP, ROUTED, IN_PROCESS),
    "eager": Scenario({"enforce_eager": True} | ROUTED_LLM | ASLEEP, ROUTED, IN_PROCESS),
}
GPT_OSS = {
    name: Scenario(DEFAULT | llm, config=MODEL, env=IN_PROCESS, requests=FEW)
    for name, llm in {"gpt-oss": {}, "gpt-oss, marlin": {"moe_backend": "marlin"}}.items()
}
SCENARIOS = CHANGING | GPT_OSS


@pytest.fixture(scope="module")
def changing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, CHANGING)
    return Runs(tmp_path_factory.mktemp("weights"), wanted, CHANGING, WEIGHTS_CHILD)


@pytest.fixture(scope="module")
def gpt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, GPT_OSS)
    return Runs(tmp_path_factory.mktemp("gpt-oss"), wanted, GPT_OSS, CHILD)


@pytest.mark.parametrize("name", CHANGING)
def test_counts_stay_exact_and_equal_vllms_own_through_reloads_and_sleep(changing: Runs, name: str) -> None:
    for serving in changing[name]["servings"]:
        what = serving["what"]
        assert serving["state"] == ["counting", ""], what
        assert serving["strategy"] == "kernel-per-step", what
        assert serving["counted"] == serving["total"], what
        assert serving["rows"] == [serving["total"]] * len(serving["rows"]), what
        assert serving["counts"] == serving["routed"], what
    assert changing[name]["epochs"] == 1


@pytest.mark.parametrize("name", CHANGING)
def test_the_weights_version_rises_with_each_change_and_not_with_sleep_that_keeps_them(
    changing: Runs, name: str
) -> None:
    run = changing[name]
    versions = dict(zip(CHANGES, [serving["version"] for serving in run["servings"]], strict=True))
    assert versions == {
        "nothing": 0,
        "reload": 1,
        "sleep 1": 1,
        "sleep 2": 2,
        "others": 3,
        "sleep 2, others": 4,
    }
    assert [serving["label"] for serving in run["servings"]] == [""] * 4 + [run["other"]] * 2
    totals = [serving["total"] for serving in run["servings"]]
    # Nothing marks where version 0 begins: its first frame is that of the first interval.
    assert run["first_of_version"][1:] == [totals[0], totals[2], totals[3], totals[4]]


@pytest.mark.parametrize("name", CHANGING)
def test_the_same_weights_give_the_same_tokens_and_others_give_others(changing: Runs, name: str) -> None:
    tokens = {serving["what"]: serving["tokens"] for serving in changing[name]["servings"]}
    assert tokens["reload"] == tokens["sleep 1"] == tokens["sleep 2"] == tokens["nothing"]
    assert tokens["others"] == tokens["sleep 2, others"] != tokens["nothing"]


@pytest.mark.parametrize("name", ["gpt-oss"])
def test_gpt_oss_is_counted_or_says_which_kernel_routes_inside_and_which_would_not(
    gpt: Runs, name: str
) -> None:
    frame = gpt[name]["frame"]
    print(f"uncovered: {frame['uncovered']}, covered: {frame['layers']}")
    assert len(frame["uncovered"]) + len(frame["layers"]) == 2
    for _, reason in frame["uncovered"]:
        assert "routes inside and never calls the router" in reason
        assert "--moe-backend marlin" in reason


@pytest.mark.parametrize("name", ["gpt-oss, marlin"])
def test_the_backend_that_the_reason_names_is_counted(gpt: Runs, name: str) -> None:
    run = gpt[name]
    assert run["frame"]["uncovered"] == []
    assert run["frame"]["layers"] == [[layer, 32, 4] for layer in range(2)]
    assert run["frame"]["rows"] == [run["computed"]] * 2
    assert [sum(counts) for counts in run["frame"]["counts"]] == [4 * run["computed"]] * 2
