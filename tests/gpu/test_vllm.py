"""Exact counts in real vLLM engines on a GPU.

Graphs, eager mode, chunks, padding, preemption, both runners: each scenario is a process of its own
(`vllm_child`) with dummy weights; they run side by side, once a session.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from tests.gpu.engines import CHILD, COUNTED, RATE, ROUTED, SCENARIOS
from tests.gpu.runs import Runs
from tests.gpu.scenario import REQUESTS, RUNNERS, needed
from tests.gpu.vllm_child import make_requests

GRAPHS = [f"graphs, {runner}" for runner in RUNNERS]
DRAFTS = [f"draft model, {runner}" for runner in RUNNERS]
PREEMPTION = [f"preemption, {runner}" for runner in RUNNERS]
A_THIRD = [f"full, {runner}" for runner in RUNNERS]
RETURN_ROUTED = ["vLLM's routed experts", f"eager, {ROUTED}"]
ON_AND_OFF = [
    *((f"{what}, {runner}", f"capture off, {runner}") for runner in RUNNERS for what in ("graphs", "traced")),
    ("vLLM's routed experts", f"capture off, {ROUTED}"),
]


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, SCENARIOS)
    return Runs(tmp_path_factory.mktemp("engines"), wanted, SCENARIOS, CHILD)


def steps(run: dict[str, Any], mode: str) -> list[list[Any]]:
    return [step for step in run["steps"] if step[0] == mode]


@pytest.mark.parametrize("name", COUNTED)
def test_each_layer_counts_each_computed_token_once(runs: Runs, name: str) -> None:
    run = runs[name]
    frame = run["frame"]
    computed = run["scheduled"] if run["scheduled"] is not None else run["computed"]
    assert frame["state"] == ["counting", ""]
    assert frame["strategy"] == "kernel-per-step"
    assert frame["uncovered"] == []
    assert frame["tokens"] == computed
    assert frame["rows"] == [computed] * len(frame["layers"])
    for (_, experts, top_k), counts in zip(frame["layers"], frame["counts"], strict=True):
        assert len(counts) == experts
        assert sum(counts) == computed * top_k


@pytest.mark.parametrize("name", [name for name in COUNTED if name not in PREEMPTION + DRAFTS])
def test_the_scheduler_computed_what_the_requests_need(runs: Runs, name: str) -> None:
    assert runs[name]["frame"]["tokens"] == runs[name]["computed"]


@pytest.mark.parametrize("name", [*GRAPHS, "DeepSeek"])
def test_all_ways_to_run_a_step_were_met(runs: Runs, name: str) -> None:
    run = runs[name]
    full, piecewise, eager = (steps(run, mode) for mode in ("FULL", "PIECEWISE", "NONE"))
    assert any(tokens == padded for _, tokens, padded, _ in full)
    assert any(tokens < padded for _, tokens, padded, _ in full)  # between two sizes
    assert piecewise
    assert any(1 < requests < tokens for _, tokens, _, requests in piecewise)  # decode and prefill mixed
    assert any(tokens == 512 for _, tokens, _, _ in eager)  # a chunk of prefill
    longest = max(tokens for _, tokens, _, _ in run["steps"])
    assert longest == 512


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (f"{what}, {runner}", mode)
        for runner in RUNNERS
        for what, mode in (("piecewise", "PIECEWISE"), ("full", "FULL"), ("eager", "NONE"))
    ],
)
def test_the_mode_asked_for_was_used_for_decode(runs: Runs, name: str, mode: str) -> None:
    decode = [step for step in runs[name]["steps"] if step[1] == step[3]]
    assert decode
    assert {step[0] for step in decode} == {mode}


@pytest.mark.parametrize("name", PREEMPTION)
def test_requests_were_preempted_and_computed_again(runs: Runs, name: str) -> None:
    assert runs[name]["preempted"] > 0
    assert runs[name]["frame"]["tokens"] > runs[name]["computed"]


@pytest.mark.parametrize("name", RETURN_ROUTED)
def test_equals_vllms_own_routed_experts_expert_by_expert(runs: Runs, name: str) -> None:
    run = runs[name]
    assert run["routed_rows"] == run["computed"]
    assert run["frame"]["counts"] == run["routed"]
    assert run["frame"]["decode_counts"] == run["routed_decode"]
    assert len(set(run["routed"][0])) > 10  # not all experts alike, so that equality says something


@pytest.mark.parametrize(("on", "off"), ON_AND_OFF)
def test_generated_tokens_are_the_same_with_capture_on_and_off(runs: Runs, on: str, off: str) -> None:
    assert runs[on]["generated"] == runs[off]["generated"]
    assert runs[on]["steps"] == runs[off]["steps"]


@pytest.mark.parametrize("name", [name for name in COUNTED if "process" not in name])
def test_capture_knows_how_a_batch_is_laid_out_where_it_must(runs: Runs, name: str) -> None:
    layouts, mixed = runs[name]["layouts"], runs[name]["frame"]["steps"][2]
    assert len(layouts) >= mixed
    assert mixed > 5 or name == "48 layers"
    assert all(layouts)


@pytest.mark.parametrize("name", COUNTED)
def test_prefill_and_decode_are_what_the_scheduler_meant(runs: Runs, name: str) -> None:
    run = runs[name]
    frame = run["frame"]
    if run["scheduled"] is not None:
        phases = run["phases"]
        decode = sum(decode for _, decode in phases)
        pure = sum(tokens == decode for tokens, decode in phases)
        mixed = sum(0 < decode < tokens for tokens, decode in phases)
        assert frame["steps"] == [len(phases), pure, mixed]
    else:
        decode = run["computed"] - sum(len(prompt) for prompt, _ in make_requests(**REQUESTS))
    assert frame["decode_tokens"] == decode > 0
    assert frame["decode_rows"] == [decode] * len(frame["layers"])
    for (_, _, top_k), counts in zip(frame["layers"], frame["decode_counts"], strict=True):
        assert sum(counts) == decode * top_k


@pytest.mark.parametrize("name", [name for name in COUNTED if SCENARIOS[name].ep_ranks])
def test_loads_by_ep_rank_of_each_step(runs: Runs, name: str) -> None:
    run = runs[name]
    frame, loads = run["frame"], run["loads"]
    assert np.sum(list(loads.values()), axis=0).tolist() == run["placed"]
    top_k = [top_k for _, _, top_k in frame["layers"]]
    of_steps = [np.array(load).sum(axis=1).tolist() for load in loads.values()]
    assert of_steps == [[tokens * k for k in top_k] for tokens, _ in run["phases"]]


@pytest.mark.parametrize("name", [name for name in COUNTED if SCENARIOS[name].env.get(RATE) == "1"])
def test_sum_of_traces_is_the_histogram(runs: Runs, name: str) -> None:
    traced = runs[name]["traced"]
    assert traced["traces"] == traced["requests"]
    assert traced["counts"] == runs[name]["frame"]["counts"]
    assert all(traced["steps_rise"])
    assert name in PREEMPTION or all(traced["computed_once"])
    # The one request that vLLM isn't told to be done is open.
    assert traced["accounts"] == {"captured": traced["requests"] + 1, "delivered": traced["requests"]}


@pytest.mark.parametrize("name", RETURN_ROUTED)
def test_traces_equal_vllms_own_routed_experts_token_by_token(runs: Runs, name: str) -> None:
    traced = runs[name]["traced"]
    assert len(traced["like_vllm"]) == traced["requests"]
    assert all(traced["like_vllm"])


@pytest.mark.parametrize("name", A_THIRD)
def test_a_share_of_the_requests_is_traced(runs: Runs, name: str) -> None:
    traced = runs[name]["traced"]
    assert 0.1 * traced["requests"] < traced["traces"] < 0.6 * traced["requests"]
    assert all(traced["computed_once"])
    sums = [sum(counts) for counts in traced["counts"]]
    assert 0 < sums[0] < sum(runs[name]["frame"]["counts"][0])
    assert len(set(sums)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((f"graphs, {runner}", f"traced, {runner}") for runner in RUNNERS),
        ("the same cache", "vLLM's routed experts"),
    ],
)
def test_counts_of_two_engines_are_the_same(runs: Runs, one: str, other: str) -> None:
    """They differ in nothing that changes a token: the same runner, the same setting of the prefix cache.

    Each engine's compiler chooses among kernels by their times, which differ in the last bits. So a token
    between two experts may take the other one: a few in ten thousand, on busy GPUs. The sums are exact.
    """
    assert runs[one]["steps"] == runs[other]["steps"]
    for ours, theirs in zip(runs[one]["frame"]["counts"], runs[other]["frame"]["counts"], strict=True):
        assert sum(ours) == sum(theirs)
        moved = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / 2
        assert moved <= sum(ours) / 500, f"{moved} of {sum(ours)} slots differ"


@pytest.mark.parametrize("name", [*GRAPHS, *DRAFTS])
def test_the_layers_are_the_targets_as_in_its_config(runs: Runs, name: str) -> None:
    assert runs[name]["frame"]["layers"] == [[layer, 60, 4] for layer in range(4)]


@pytest.mark.parametrize("name", ["DeepSeek"])
def test_a_dense_first_layer_is_no_moe_layer(runs: Runs, name: str) -> None:
    assert runs[name]["frame"]["layers"] == [[layer, 64, 6] for layer in (1, 2, 3)]


@pytest.mark.parametrize("name", DRAFTS)
def test_drafts_were_verified_by_the_target(runs: Runs, name: str) -> None:
    verified = [step for step in runs[name]["steps"] if step[1] == 3 * step[3]]
    assert len(verified) > 10  # each request has two drafts to verify, which are the target's tokens then


@pytest.mark.parametrize(("with_capture", "without"), [("48 layers", "48 layers, capture off")])
def test_memory_that_capture_takes_with_vllms_own_graph_sizes(
    runs: Runs, with_capture: str, without: str
) -> None:
    on, off = (runs[name]["memory_reserved"] / 2**20 for name in (with_capture, without))
    print(f"reserved after start-up: {on:.0f} MiB with capture, {off:.0f} MiB without")
    assert on - off < 64
