"""EPLB on, for real: logical experts, and placements by version, as vLLM's own state has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from moescope.capture.wire import Frame, unpack_counts, unpack_ids, unpack_step_loads
from tests.e2e.cluster import DP2_EP2, Cluster, prompts

pytestmark = pytest.mark.e2e

BALANCER = {"window_size": 40, "step_interval": 40, "num_redundant_experts": 2, "use_async": False}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2 with two redundant experts, rearranged every 40 passes."""
    folder: Path = tmp_path_factory.mktemp("eplb")
    notes = folder / "notes"
    notes.mkdir()
    options = {
        **DP2_EP2,
        "worker_class": "tests.e2e.eplb_worker.EplbWorker",
        "env": {"EPLB_FOLDER": str(notes), "PYTHONPATH": str(Path.cwd())},
        "extra_args": ("--enable-eplb", "--eplb-config", json.dumps(BALANCER)),
    }
    with Cluster(folder, options) as running:
        running.complete_all(prompts(40), concurrency=6)
        running.assert_exact()
        yield running


def noted(cluster: Cluster, dp_rank: int) -> dict[str, Any]:
    return dict(json.loads((cluster._folder / "notes" / str(dp_rank)).read_text()))


def frames(cluster: Cluster, dp_rank: int) -> list[Frame]:
    found = [frame for frame in cluster.relay.frames if frame.producer.dp_rank == dp_rank]
    assert all(frame.placement for frame in found)
    return sorted(found, key=lambda frame: frame.seq)


def table_of(frame: Frame) -> list[list[int]]:
    """The frame's placement as EPLB has it: the logical expert of each physical one, by layer."""
    assert frame.placement is not None
    tables = [
        unpack_ids(frame.placement.tables[t].physical_to_logical) for t in frame.placement.table_of_layer
    ]
    return [table.tolist() for table in tables]


def test_counts_are_of_logical_experts(balanced: Cluster) -> None:
    """Expert by expert what the routers chose, whichever replica computed it."""
    for dp_rank in (0, 1):
        truth = {layer: np.zeros(16, np.int64) for layer in (1, 2, 3, 4)}
        for _, layer, expert, count in noted(balanced, dp_rank)["slots"]:
            truth[layer][expert] += count
        counted = {layer: found["counts"] for layer, found in balanced.layers(dp_rank).items()}
        assert counted == {layer: counts.tolist() for layer, counts in truth.items()}


def test_frames_carry_the_placements_that_were_in_force_in_their_order(balanced: Cluster) -> None:
    by_version: dict[int, list[list[int]]] = {}
    for dp_rank in (0, 1):
        maps = noted(balanced, dp_rank)["maps"]
        assert len(maps) > 3, "EPLB did not move experts often"
        seen = [(frame.placement.version, table_of(frame)) for frame in frames(balanced, dp_rank)]
        order = [maps.index(table) for _, table in seen]
        assert order == sorted(order)
        assert order[0] == 0
        assert len(set(order)) > 2
        versions = [version for version, _ in seen]
        assert versions == sorted(versions)
        for version, table in seen:
            assert by_version.setdefault(version, table) == table, "ranks give one version to two placements"


def test_ep_ranks_hold_as_many_physical_experts(balanced: Cluster) -> None:
    placement = frames(balanced, 0)[-1].placement
    assert placement is not None
    for table in placement.tables:
        assert unpack_ids(table.physical_to_ep_rank).tolist() == [0] * 9 + [1] * 9
        assert set(unpack_ids(table.physical_to_logical).tolist()) == set(range(16))


def loads_by_step(cluster: Cluster, dp_rank: int) -> dict[int, list[list[int]]]:
    """Slots by layer and EP rank of each step that the frames tell, each step once."""
    found: dict[int, list[list[int]]] = {}
    for frame in frames(cluster, dp_rank):
        assert frame.step_loads is not None
        numbers, loads = unpack_step_loads(frame.step_loads, 4, 2)
        assert not set(found) & set(numbers.tolist())
        found |= dict(zip(numbers.tolist(), loads.tolist(), strict=True))
    return found


def test_each_step_has_the_loads_of_the_copies_that_vllm_took(balanced: Cluster) -> None:
    """Exactly, from the first step to the last, over all rearrangements."""
    for dp_rank in (0, 1):
        noted_steps = {int(number): loads for number, loads in noted(balanced, dp_rank)["steps"].items()}
        assert loads_by_step(balanced, dp_rank) == noted_steps
        assert len(noted_steps) > 50
        passes = {int(number): loads for number, loads in noted(balanced, dp_rank)["passes"].items()}
        told = [number for number in passes if np.any(passes[number])]
        print(f"DP rank {dp_rank}: {len(told)} of {len(passes)} steps have loads of EPLB's own")
        assert {number: passes[number] for number in told} == {n: noted_steps[n] for n in told}


def test_slots_by_ep_rank_are_the_sum_of_all_steps(balanced: Cluster) -> None:
    for dp_rank in (0, 1):
        steps, last = noted(balanced, dp_rank)["steps"], frames(balanced, dp_rank)[-1]
        found = unpack_counts(last.ep_slots).reshape(4, 2)
        assert found.tolist() == np.sum(list(steps.values()), axis=0).tolist()
        assert unpack_counts(last.decode_ep_slots).sum() == unpack_counts(last.decode_counts).sum()
        assert found.sum() == unpack_counts(last.counts).sum()


def test_steps_of_both_dp_ranks_are_joined_over_rearrangements(balanced: Cluster) -> None:
    steps = [
        {int(number): np.array(loads) for number, loads in noted(balanced, rank)["steps"].items()}
        for rank in (0, 1)
    ]
    both = [steps[0].get(number, 0) + steps[1].get(number, 0) for number in {*steps[0], *steps[1]}]
    most = np.sum([np.asarray(loads).max(axis=1) for loads in both], axis=0)
    found = balanced.service.get("/v1/stragglers", start="-1h")
    assert [layer["max_slots"] for layer in found["layers"]] == most.tolist()


def test_advice_and_drift_of_a_server_with_eplb(balanced: Cluster) -> None:
    """Advice compares with what the ranks really got, and the service knows where the experts are now."""
    service = balanced.service
    advice = service.get("/v1/advice", redundant=2, min_tokens=1)
    assert (advice["ranks"], advice["num_experts"], advice["layers"]) == (2, 16, [1, 2, 3, 4])
    assert advice["base"]["strategy"] == "present"
    assert advice["base"]["held_out"]["ratio_of_sums"] >= 1
    [option] = [item for item in advice["options"] if item["redundant"] == 2]
    assert option["fitted"]["ratio_of_sums"] <= advice["base"]["fitted"]["ratio_of_sums"]
    assert 0 <= option["copies_to_move"] <= 4 * 18
    found = service.get("/v1/advice/placement", redundant=2, min_tokens=1)
    assert found["physical_to_rank"] == [[0] * 9 + [1] * 9] * 4
    for item in service.get("/v1/advice/rearrangements", min_tokens=1)["rearrangements"]:
        assert (item["saving_achieved"] is None) == (item["reason"] is not None)
    pinned = httpx.post(f"{service.url}/v1/baselines", json={"name": "all"}, timeout=60)
    assert pinned.status_code == 201, pinned.text
    assert pinned.json()["by_phase"] is True
    same = service.get("/v1/drift", baseline="all", start="-1h", phase="decode", min_tokens=1)
    assert [layer["divergence"] for layer in same["layers"]] == pytest.approx([0] * 4, abs=1e-9)
