"""Speculative decoding in real vLLM engines on a GPU: each scenario is a process, and each test runs alone.

Dummy weights draft badly, and n-grams draft well for the simple texts of dummy weights: both are wanted.
Runner V2, and V1 with a draft model, schedule asynchronously.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from devkit.gpu_models import deepseek_v3, llama
from devkit.vllm_features import vllm_has
from tests.gpu.engines import CHILD, DRAFT, ROUTED, ROUTED_LLM, TRACED
from tests.gpu.runs import Runs
from tests.gpu.scenario import DEFAULT, VOCABULARY, Runner, Scenario, graphs, needed

V2_DRAFTS = vllm_has("v1/worker/gpu/spec_decode/standalone_ar")
V2_NGRAM = vllm_has("v1/worker/gpu/spec_decode/ngram")
NGRAM = {"num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
FEW_BLOCKS = {"num_gpu_blocks_override": 80, "max_model_len": 1024}
# V2's drafts of a full step have more rows than vLLM profiled: 0.33 dies of its "Workspace is locked".
ROOMY = {"max_num_batched_tokens": 8192}


def scenario(
    runner: Runner,
    llm: dict[str, Any],
    speculative: dict[str, Any] | None,
    needs: bool = True,
    own: bool = True,
    **more: Any,
) -> Scenario:
    """An engine that traces all requests; one of V2 also returns vLLM's own routed experts, if it can."""
    routed = ROUTED_LLM if own and runner == ROUTED == "V2" else {}
    drafted = {} if speculative is None else {"speculative_config": speculative}
    lacking = "" if needs else f"runner {runner} of this vLLM doesn't draft so"
    return Scenario(DEFAULT | llm | routed | drafted, runner, TRACED, lacking=lacking, **more)


SCENARIOS: dict[str, Scenario] = {
    "drafting by ngram_gpu, V2": scenario("V2", ROOMY, NGRAM | {"method": "ngram_gpu"}, V2_NGRAM),
    "drafting by ngram_gpu in full graphs, V2": scenario(
        "V2", graphs("FULL") | ROOMY, NGRAM | {"method": "ngram_gpu"}, V2_NGRAM
    ),
    "drafting by n-grams, V1": scenario("V1", {}, NGRAM | {"method": "ngram"}),
    # 0.33 refuses to return routed experts beside a draft model of its own.
    "drafting by a model, V2": scenario(
        "V2", graphs("PIECEWISE") | ROOMY, None, V2_DRAFTS, own=False, draft=DRAFT
    ),
    "drafting by a model, V1": scenario("V1", graphs("PIECEWISE"), None, draft=DRAFT),
    "drafting by EAGLE, V2": scenario(
        "V2", ROOMY, None, draft=llama(vocabulary=VOCABULARY), draft_method="eagle"
    ),
    "drafting by MTP, V2": scenario(
        "V2", ROOMY, {"method": "mtp", "num_speculative_tokens": 2}, config=deepseek_v3(vocabulary=VOCABULARY)
    ),
    "drafting by MTP, V1": scenario(
        "V1", {}, {"method": "mtp", "num_speculative_tokens": 2}, config=deepseek_v3(vocabulary=VOCABULARY)
    ),
    "drafting with preemption, V2": scenario(
        "V2", FEW_BLOCKS | {"enforce_eager": True}, NGRAM | {"method": "ngram_gpu"}, V2_NGRAM
    ),
}
ALL = list(SCENARIOS)
ONCE = [name for name in ALL if "preemption" not in name]
OWN = [name for name in ONCE if SCENARIOS[name].llm.get("enable_return_routed_experts")]


@pytest.fixture(scope="session")
def drafted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, SCENARIOS)
    return Runs(tmp_path_factory.mktemp("drafted"), wanted, SCENARIOS, CHILD)


@pytest.mark.parametrize("name", ALL)
def test_each_layer_counts_each_row_of_the_target_once(drafted: Runs, name: str) -> None:
    run = drafted[name]
    frame, layers = run["frame"], [layer for layer, _, _ in run["frame"]["layers"]]
    assert frame["state"] == ["counting", ""]
    assert run["unavailable"] == {}
    assert layers == ([1, 2, 3] if "MTP" in name else [0, 1, 2, 3])  # the drafting layers are not among them
    assert frame["tokens"] == run["scheduled"]
    assert frame["rows"] == [run["scheduled"]] * len(layers)


@pytest.mark.parametrize("name", ONCE)
def test_tokens_less_rejected_drafts_are_those_that_the_requests_need(drafted: Runs, name: str) -> None:
    run = drafted[name]
    accepted, rejected = run["drafts"]
    print(f"{name}: {accepted} accepted, {rejected} rejected of {run['scheduled']} tokens")
    assert accepted + rejected > 0
    assert run["scheduled"] - rejected == run["computed"]
    assert run["traced"]["rejected"] == rejected


@pytest.mark.parametrize("name", ALL)
def test_every_trace_has_each_of_its_tokens(drafted: Runs, name: str) -> None:
    traced = drafted[name]["traced"]
    assert traced["traces"] == traced["requests"]
    assert traced["unknown"] == 0
    assert all(traced["steps_rise"])
    assert name not in ONCE or all(traced["computed_once"])
    # The one request that vLLM isn't told to be done is open.
    assert traced["accounts"] == {"captured": traced["requests"] + 1, "delivered": traced["requests"]}


@pytest.mark.parametrize("name", OWN)
def test_traces_equal_vllms_own_routed_experts_token_by_token(drafted: Runs, name: str) -> None:
    traced = drafted[name]["traced"]
    assert len(traced["like_vllm"]) == traced["requests"]
    assert all(traced["like_vllm"])


@pytest.mark.parametrize("name", ALL)
def test_rows_of_traces_and_rejected_drafts_are_all_rows(drafted: Runs, name: str) -> None:
    run = drafted[name]
    for (_, _, top_k), counts in zip(run["frame"]["layers"], run["traced"]["counts"], strict=True):
        assert sum(counts) == (run["scheduled"] - run["traced"]["rejected"]) * top_k


@pytest.mark.parametrize("name", [name for name in ALL if name not in ONCE])
def test_something_was_preempted(drafted: Runs, name: str) -> None:
    assert drafted[name]["preempted"] > 0
