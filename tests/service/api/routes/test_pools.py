"""Pools: each deployment measured by itself, the pool as their sum, and who of them is the problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

EVEN = [100, 100, 100, 100]


def push(
    service: Service,
    server: str,
    counts: Sequence[int] = EVEN,
    *,
    pool: str = "chat",
    role: str = "",
    model: str = "tiny",
    seq: int = 1,
    epoch: int = EPOCH,
    dp_rank: int = 0,
    **fields: Any,
) -> None:
    """A frame of one DP rank of two EP ranks, the first of which has experts 0 and 1."""
    sizes = {"dp_size": 2, "ep_size": 2, "ep_rank": dp_rank}
    who = producer(server=server, model=model, pool=pool, role=role, dp_rank=dp_rank, **sizes)
    after = service.clock.now - epoch / 1e9
    made = frame({0: counts}, who=who, seq=seq, epoch=epoch, after_s=after, placement=halves(4, 1), **fields)
    assert service.push(made).json()["result"] == "accepted"


def push_both(service: Service, server: str, counts: Sequence[int] = EVEN, **fields: Any) -> None:
    for dp_rank in (0, 1):
        push(service, server, counts, dp_rank=dp_rank, **fields)


def detail(service: Service, path: str, status: int, **params: Any) -> str:
    response = service.client.get(path, params=params)
    assert response.status_code == status, response.text
    found: str = response.json()["detail"]
    return found


def by_server(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["server"]: item for item in answer["deployments"]}


def test_a_pool_is_the_sum_of_its_deployments(service: Service) -> None:
    push_both(service, "a", [2 * n for n in EVEN])
    push_both(service, "b")
    push_both(service, "alone", pool="")
    answer = service.get("/v1/pools")
    [pool] = answer["pools"]
    assert (pool["pool"], pool["model"], pool["tokens"], pool["known_tokens"]) == ("chat", "tiny", 1200, 1200)
    assert {name: item["tokens"] for name, item in by_server(pool).items()} == {"a": 800, "b": 400}
    assert pool["tokens_per_second"] == {"value": pytest.approx(12), "reason": None}
    assert (pool["silent"], pool["partial"], pool["disabled"]) == ([], [], [])
    assert answer["without_pool"] == ["alone"]
    assert service.get("/v1/pools", model="other")["pools"] == []


def test_each_deployment_is_measured_by_itself(service: Service) -> None:
    """Two that are each 1.59 over EP ranks, the other way round, look like 1.01 where they are summed."""
    push_both(service, "a", [7943, 7943, 2057, 2057])
    push_both(service, "b", [2022, 2023, 7977, 7978])
    answer = by_server(service.get("/v1/pools/chat"))
    assert answer["a"]["ep_imbalance_ratio"]["value"] == pytest.approx(1.5886)
    assert answer["b"]["ep_imbalance_ratio"]["value"] == pytest.approx(1.5955, abs=1e-4)
    for server, item in answer.items():
        summary = service.get("/v1/balance", server=server)["summary"]["over_ep_ranks"]
        assert summary["ratio_of_sums"] == item["ep_imbalance_ratio"]["value"]
        assert summary["worst_layer"] == item["worst_layer"] == 0
        assert item["dp_imbalance_ratio"] == {"value": 1.0, "reason": None}


def test_the_replica_that_is_the_problem_stands_out(service: Service) -> None:
    for server in ("a", "b"):
        push_both(service, server, [110, 90, 100, 100])
    push_both(service, "c", [1000, 100, 50, 50])
    answer = service.get("/v1/pools/chat")
    assert {item["server"] for item in answer["stand_out"]} == {"a", "b", "c"}  # a and b compute too little
    found = {item["measure"]: item for item in answer["stand_out"] if item["server"] == "c"}
    assert set(found) == {"tokens_over_mean", "ep_imbalance_ratio", "max_vio", "divergence_bits"}
    assert found["ep_imbalance_ratio"]["siblings"] == pytest.approx(1.0)
    assert found["ep_imbalance_ratio"]["value"] == pytest.approx(1100 / 600)
    assert found["tokens_over_mean"]["value"] == pytest.approx(1200 / (2000 / 3))
    a, c = by_server(answer)["a"], by_server(answer)["c"]
    assert (a["hot_experts"]["value"], c["hot_experts"]["value"]) == (0, 1)
    assert c["max_vio"]["value"] == pytest.approx(1000 / 300 - 1)
    assert c["divergence"]["median"] > 4 * c["divergence"]["noise"]


def test_like_replicas_do_not_stand_out(service: Service) -> None:
    """However unbalanced: what all have in common is no replica's own problem."""
    for server, slots in (("a", 1000), ("b", 1010), ("c", 990)):
        push_both(service, server, [slots, 100, 50, 50])
    answer = service.get("/v1/pools/chat")
    assert answer["stand_out"] == []
    assert [item["tokens_over_mean"]["value"] for item in answer["deployments"]] == pytest.approx(
        [1, 1.0083, 0.9917], abs=1e-3
    )


def test_the_divergence_of_a_replica_is_that_from_its_siblings_together(service: Service) -> None:
    push_both(service, "a", [100, 0, 0, 0], rows=[50])
    push_both(service, "b", [0, 50, 0, 50], rows=[50])
    push_both(service, "c", [0, 50, 0, 50], rows=[50])
    answer = by_server(service.get("/v1/pools/chat"))
    assert answer["a"]["divergence"]["median"] == 1.0  # nothing in common
    # b's shares (0, 1/2, 0, 1/2) against those of a and c together (1/2, 1/4, 0, 1/4), worked out by hand.
    assert answer["b"]["divergence"]["median"] == pytest.approx(0.3112781)
    assert answer["b"]["divergence"]["worst_layer"] == 0


def test_one_deployment_has_no_sibling(service: Service) -> None:
    push_both(service, "a")
    [only] = service.get("/v1/pools/chat")["deployments"]
    assert only["tokens_over_mean"]["value"] is None
    assert only["tokens_over_mean"]["reason"].startswith("no sibling")
    assert only["divergence"]["median"] is None
    assert only["divergence"]["reason"].startswith("no sibling")


def test_what_is_missing_partial_or_unknown_is_named(service: Service) -> None:
    push_both(service, "a")
    push(service, "half")  # its DP rank 1 never reported
    push_both(service, "off", state="disabled", state_reason="no memory")
    push_both(service, "gone")
    service.clock.now += 20
    push_both(service, "a", [2 * n for n in EVEN], seq=2)
    push(service, "half", seq=2)
    push_both(service, "off", state="disabled", state_reason="no memory", seq=2)
    answer = service.get("/v1/pools/chat")
    assert (answer["silent"], answer["partial"], answer["disabled"]) == (["gone"], ["half"], ["off"])
    assert answer["tokens"] is None
    assert answer["tokens_reason"].startswith("partial: the tokens of off are not known")
    assert "no memory" in answer["tokens_reason"]
    assert by_server(answer)["half"]["missing_dp_ranks"] == [1]
    assert by_server(answer)["off"]["tokens"] is None
    states = {name: item["state"] for name, item in by_server(answer).items()}
    assert states == {"a": "counting", "half": "partial", "off": "disabled", "gone": "stale"}


def test_a_silent_replica_is_not_part_of_the_mean(service: Service) -> None:
    push_both(service, "a")
    push_both(service, "b")
    push_both(service, "gone")
    service.clock.now += 60
    for server in ("a", "b"):
        push_both(service, server, [3 * n for n in EVEN], seq=2)
    answer = by_server(service.get("/v1/pools/chat", start="-30s"))
    assert answer["a"]["tokens_over_mean"]["value"] == 1.0
    assert answer["gone"]["tokens_over_mean"]["value"] is None
    assert "silent" in answer["gone"]["tokens_over_mean"]["reason"]


def test_prefill_and_decode_are_compared_layer_by_layer(service: Service) -> None:
    push_both(service, "p1", [100, 100, 0, 0], role="prefill", decode={0: [0, 0, 0, 0]})
    push_both(service, "p2", [100, 100, 0, 0], role="prefill", decode={0: [0, 0, 0, 0]})
    push_both(service, "d", [0, 100, 100, 0], role="decode", decode={0: [0, 100, 100, 0]})
    answer = service.get("/v1/pools/chat")
    assert [(item["role"], item["servers"], item["tokens"]) for item in answer["roles"]] == [
        ("decode", ["d"], 200),
        ("prefill", ["p1", "p2"], 400),
    ]
    assert [item["phases"] for item in answer["roles"]] == [
        {"prefill": 0, "decode": 200},
        {"prefill": 400, "decode": 0},
    ]
    assert answer["phases"] == {"prefill": 400, "decode": 200}
    [layer] = answer["layers"]
    assert (layer["layer"], layer["prefill_tokens"], layer["decode_tokens"]) == (0, 400, 200)
    assert layer["divergence"] == 0.5  # half of the slots go to an expert that the others don't choose
    # Siblings have the same role: p1 and p2 are alike, and d has none.
    assert by_server(answer)["p1"]["divergence"]["median"] == 0
    assert by_server(answer)["d"]["divergence"]["reason"].startswith("no sibling")
    assert [item for item in answer["stand_out"] if item["measure"] == "divergence_bits"] == []


def test_layers_of_idle_or_unseen_instances_have_a_reason(service: Service) -> None:
    push_both(service, "p", role="prefill")
    push_both(service, "d", [0, 0, 0, 0], role="decode")
    [layer] = service.get("/v1/pools/chat")["layers"]
    assert (layer["divergence"], layer["reason"]) == (
        None,
        "idle: the decode instances have no slots here in the window",
    )


def test_phases_that_are_not_told_are_null_with_a_reason(service: Service) -> None:
    push_both(service, "a", decode={0: [100, 100, 0, 0]})
    push_both(service, "b", unavailable={"phases": "no order of rows"})
    answer = service.get("/v1/pools/chat")
    assert answer["phases"] is None
    assert answer["phases_reason"] == "partial: the phases of b are not known (no order of rows)"
    assert by_server(answer)["a"]["phases"] == {"prefill": 200, "decode": 200}


def test_a_deployment_that_moves_goes_by_its_newest_start(service: Service) -> None:
    push_both(service, "a", pool="old")
    push_both(service, "b", pool="old")
    service.clock.now += 5
    push_both(service, "a", pool="new", epoch=EPOCH + 104 * 10**9)
    answer = service.get("/v1/pools")
    assert {item["pool"]: list(by_server(item)) for item in answer["pools"]} == {
        "new": ["a"],
        "old": ["b"],
    }
    assert by_server(service.get("/v1/pools/new"))["a"]["tokens"] == 800  # over both of its lives


def test_a_late_frame_of_an_older_start_does_not_move_a_deployment_back(service: Service) -> None:
    push_both(service, "a", pool="new", epoch=EPOCH + 50 * 10**9)
    push_both(service, "a", pool="old", epoch=EPOCH)
    assert [item["pool"] for item in service.get("/v1/pools")["pools"]] == ["new"]


def test_errors_list_pools(service: Service) -> None:
    assert "MOESCOPE_POOL" in detail(service, "/v1/pools/chat", 404)
    push_both(service, "a")
    push_both(service, "b", pool="other", model="m2")
    assert detail(service, "/v1/pools/chta", 404) == ("There are: pool=chat model=tiny, pool=other model=m2.")
    push_both(service, "c", model="m2")
    told = detail(service, "/v1/pools/chat", 400)
    assert told == "Choose one by model: pool=chat model=m2, pool=chat model=tiny."
    assert service.get("/v1/pools/chat", model="m2")["deployments"][0]["server"] == "c"
    told = detail(service, "/v1/balance", 400)
    assert "server=a model=tiny pool=chat" in told
    assert "server=b model=m2 pool=other" in told
    assert "pool=other" in detail(service, "/v1/balance", 404, pool="nope")


@pytest.mark.parametrize("path", ["/v1/balance", "/v1/histogram", "/v1/stragglers", "/v1/view"])
def test_queries_filter_by_pool(service: Service, path: str) -> None:
    push_both(service, "a")
    push_both(service, "b", pool="other")
    push_both(service, "c", pool="")
    assert service.get(path, pool="other")["server"] == "b"
    push_both(service, "d", pool="other")
    assert "server=d model=tiny pool=other" in detail(service, path, 400, pool="other")
    assert service.get(path, pool="other", server="d")["server"] == "d"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/advice",
        "/v1/advice/placement",
        "/v1/advice/rearrangements",
        "/v1/compare",
        "/v1/drift",
        "/v1/placement",
        "/v1/trend",
    ],
)
def test_all_routes_of_one_deployment_choose_by_pool(service: Service, path: str) -> None:
    push_both(service, "a")
    push_both(service, "b", pool="other")
    assert "server=b model=tiny pool=other" in detail(service, path, 400)
    assert service.client.get(path, params={"pool": "other"}).status_code == 200
    push_both(service, "d", pool="other")
    assert detail(service, path, 400, pool="other") == (
        "Choose one by server and model: server=b model=tiny pool=other, server=d model=tiny pool=other."
    )


def test_ranks_show_and_filter_by_pool(service: Service) -> None:
    push_both(service, "a", role="prefill")
    push_both(service, "b", pool="")
    found = service.get("/v1/ranks")["deployments"]
    assert [(item["server"], item["pool"], item["role"]) for item in found] == [
        ("a", "chat", "prefill"),
        ("b", None, None),
    ]
    assert [item["server"] for item in service.get("/v1/ranks", pool="chat")["deployments"]] == ["a"]
    assert service.get("/v1/ranks", pool="nope")["deployments"] == []


def test_a_pool_may_have_any_name(service: Service) -> None:
    push_both(service, "a", pool="team/chat ü?#")
    response = service.client.get("/v1/pools/team%2Fchat%20%C3%BC%3F%23")
    assert response.json()["pool"] == "team/chat ü?#"


def test_pools_come_back_after_a_restart(start_service: Callable[..., Service], tmp_path: Path) -> None:
    first = start_service(min_tokens=1, store=str(tmp_path / "store"))
    push_both(first, "a", role="decode")
    before = first.get("/v1/pools/chat")["deployments"]
    start_service.end_all()  # type: ignore[attr-defined]
    second = start_service(min_tokens=1, store=str(tmp_path / "store"))
    after = second.get("/v1/pools/chat")["deployments"]
    assert [(item["server"], item["role"], item["tokens"]) for item in after] == [("a", "decode", 400)]
    assert after == before


def test_expired_deployments_are_in_no_pool(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1, expire_after_s=100)
    push_both(service, "a")
    push_both(service, "b")
    service.clock.now += 101
    push_both(service, "b", seq=2)
    assert list(by_server(service.get("/v1/pools/chat"))) == ["b"]


def test_all_of_it_is_as_the_document_says(service: Service) -> None:
    for server in ("p1", "p2"):
        push_both(service, server, [400, 0, 0, 0], role="prefill", decode={0: [0, 0, 0, 0]})
    push_both(service, "d1", role="decode", decode={0: EVEN})
    push_both(service, "d2", [1000, 0, 0, 100], role="decode")
    document = service.get("/openapi.json")
    response = service.client.get("/v1/pools/chat")
    assert response.json()["stand_out"]
    assert response.json()["layers"]
    check(document, "/v1/pools/{pool}", response)
    check(document, "/v1/pools", service.client.get("/v1/pools"))


def test_a_deployment_in_conflict_has_no_measures_and_counts_in_the_sum(service: Service) -> None:
    """Two live processes under one name: what they counted is known, and how even it was is not."""
    push_both(service, "a")
    for seq in range(1, 21):
        for pid, epoch, counts in ((1, EPOCH, [900, 0, 50, 50]), (2, EPOCH + 10**9, [50, 50, 0, 900])):
            for dp_rank in (0, 1):
                sizes = {"dp_size": 2, "ep_size": 2, "ep_rank": dp_rank, "pool": "chat"}
                who = producer(
                    server="twice", dp_rank=dp_rank, pid=pid, host=f"h{pid}", start=f"s{pid}", **sizes
                )
                after = service.clock.now - epoch / 1e9
                slots = [seq * slot for slot in counts]
                made = frame({0: slots}, who=who, seq=seq, epoch=epoch, after_s=after, placement=halves(4, 1))
                assert service.push(made).status_code == 200
        service.clock.now += 1
    push_both(service, "a", [2 * n for n in EVEN], seq=2)
    answer = service.get("/v1/pools/chat")
    assert answer["conflict"] == ["twice"]
    found = by_server(answer)["twice"]
    assert (found["state"], found["tokens"]) == ("conflict", 4 * 20 * 500)
    for measure in ("ep_imbalance_ratio", "dp_imbalance_ratio", "straggler_cost", "max_vio"):
        assert found[measure]["value"] is None
        assert "conflict" in found[measure]["reason"] or "claim" in found[measure]["reason"], measure
    assert found["divergence"]["median"] is None
    assert found["tokens_over_mean"]["value"] is None
    assert "claim" in found["tokens_over_mean"]["reason"]
    assert by_server(answer)["a"]["tokens_over_mean"]["reason"].startswith("no sibling")
    assert answer["stand_out"] == []


def test_a_past_window_stays_as_it_is_when_a_replica_ends(service: Service) -> None:
    for server in ("a", "b"):
        push_both(service, server)
    for seq in (2, 3, 4):
        service.clock.now += 10
        push_both(service, "a", [seq * n for n in EVEN], seq=seq)
        push_both(service, "b", [seq * n for n in (900, 100, 100, 100)], seq=seq)
    end = service.clock.now - 10
    window = {"start": end - 15, "end": end}
    before = service.get("/v1/pools/chat", **window)
    assert before["tokens"] > 0
    push_both(service, "b", [5 * n for n in (900, 100, 100, 100)], seq=5, ended=True)
    service.clock.now += 1
    after = service.get("/v1/pools/chat", **window)
    assert (after.pop("gone"), before.pop("gone")) == (["b"], [])
    states = [[item.pop("state") for item in answer["deployments"]] for answer in (before, after)]
    assert states == [["counting", "counting"], ["counting", "gone"]]
    assert after == before
    [listed] = service.get("/v1/pools", **window)["pools"]
    assert (listed["gone"], listed["tokens"]) == (["b"], before["tokens"])


def test_a_replica_that_ended_in_the_window_is_in_the_sum_and_in_no_mean(service: Service) -> None:
    for server in ("a", "b", "c"):
        push_both(service, server)
    service.clock.now += 20
    start = service.clock.now - 10
    for server, ended in (("a", False), ("b", False), ("c", True)):
        push_both(service, server, [3 * n for n in EVEN], seq=2, ended=ended)
    service.clock.now += 5
    answer = service.get("/v1/pools/chat", start=start - 20)
    assert (answer["tokens"], answer["gone"], answer["stand_out"]) == (3 * 800, ["c"], [])
    assert by_server(answer)["c"]["tokens_over_mean"]["reason"] == "it ended before the window's end"
    assert by_server(answer)["a"]["tokens_over_mean"]["value"] == 1
    assert list(by_server(service.get("/v1/pools/chat"))) == ["a", "b"]  # live ones, since their starts
    assert list(by_server(service.get("/v1/pools/chat", start="-1s"))) == ["a", "b"]
