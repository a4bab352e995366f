"""Who computed a cached prefix, in real vLLM engines on a GPU: conversations of three turns, all traced.

vLLM's own routed experts have the cached positions too. So a trace whose prefix is filled with the rows of
the requests that it names equals them, token by token.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from tests.gpu.engines import CHILD, ROUTED, TRACED
from tests.gpu.runs import Runs
from tests.gpu.scenario import DEFAULT, RUNNERS, VOCABULARY, Runner, Scenario, needed

TURNS = 3
CONVERSATIONS: dict[str, int] = {"long": 14, "short": 10, "longest": 600, "vocabulary": VOCABULARY}
FEW_BLOCKS = {"num_gpu_blocks_override": 100, "max_model_len": 1280}


def scenario(runner: Runner, llm: dict[str, Any], stops: bool = False) -> Scenario:
    """An engine with a prefix cache; it also returns vLLM's own routed experts, if its runner can."""
    own = {"enable_return_routed_experts": True} if runner == ROUTED else {}
    options = DEFAULT | {"enable_prefix_caching": True} | own | llm
    return Scenario(options, runner, TRACED, requests=CONVERSATIONS, turns=TURNS, stops=stops)


SCENARIOS: dict[str, Scenario] = {
    f"{name}, {runner}": scenario(runner, llm)
    for runner in RUNNERS
    for name, llm in {
        "prefixes": {},
        "prefixes in eager mode": {"enforce_eager": True},
        "prefixes with few blocks": FEW_BLOCKS,
    }.items()
}
ALL = list(SCENARIOS)
STOPPED = [f"stop tokens, {runner}" for runner in RUNNERS]
SCENARIOS |= {name: scenario(runner, {}, stops=True) for name, runner in zip(STOPPED, RUNNERS, strict=True)}
ROOMY = [name for name in ALL if "few blocks" not in name]
OWN = [name for name in ROOMY + STOPPED if SCENARIOS[name].llm.get("enable_return_routed_experts")]


@pytest.fixture(scope="session")
def conversing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, SCENARIOS)
    return Runs(tmp_path_factory.mktemp("conversing"), wanted, SCENARIOS, CHILD)


@pytest.mark.parametrize("name", OWN)
def test_filled_traces_equal_vllms_own_routed_experts_token_by_token(conversing: Runs, name: str) -> None:
    traced = conversing[name]["traced"]
    assert len(traced["like_vllm"]) == traced["requests"]
    assert all(traced["like_vllm"])


@pytest.mark.parametrize("name", ROOMY)
def test_all_cached_positions_name_who_computed_them(conversing: Runs, name: str) -> None:
    traced = conversing[name]["traced"]
    assert traced["said"] == {"named": traced["cached"]}
    assert traced["cached"] > 5000
    assert traced["holes"] == 0
    assert traced["referred"]["2"] > 10  # the third turn has blocks of the first one and of the second
    assert all(traced["computed_once"])
    assert conversing[name]["scheduled"] == conversing[name]["computed"]


@pytest.mark.parametrize("name", [name for name in ALL if name not in ROOMY])
def test_evicted_and_preempted_requests_name_no_wrong_origin(conversing: Runs, name: str) -> None:
    run = conversing[name]
    traced = run["traced"]
    assert run["preempted"] > 0
    assert traced["said"].keys() <= {"named", "computed_again"}
    assert traced["said"]["named"] > 0
    assert traced["holes"] <= traced["said"].get("computed_again", 0)
    assert traced["traces"] == traced["requests"]


@pytest.mark.parametrize("name", ALL)
def test_counts_are_exact_with_a_prefix_cache(conversing: Runs, name: str) -> None:
    run = conversing[name]
    assert run["frame"]["tokens"] == run["scheduled"]
    assert run["frame"]["counts"] == run["traced"]["counts"]


@pytest.mark.parametrize("name", STOPPED)
def test_traces_end_where_vllm_ended_the_request(conversing: Runs, name: str) -> None:
    """The reason is vLLM's own, and a row that was computed behind a stop token is in no trace."""
    run = conversing[name]
    traced = run["traced"]
    assert traced["reasons"].keys() == {"length for length", "stop for stop"}
    assert traced["reasons"]["stop for stop"] > 20
    assert traced["traces"] == traced["requests"]
    assert all(traced["computed_once"])
    assert traced["holes"] == 0
    assert run["frame"]["tokens"] == run["scheduled"] == run["computed"] + traced["rejected"]
