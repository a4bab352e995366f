"""The queries, over a real connection."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer


def _rank(dp_rank: int) -> wire.Producer:
    return producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2, host="node", pid=40 + dp_rank)


def _push_both(service: Service, scale: int = 1, seq: int = 1) -> None:
    """A steady two to one over EP ranks and over DP ranks, in layers 0 and 3; layer 5 can't be seen."""
    for dp_rank, share in ((0, 2), (1, 1)):
        by_expert = [100 * share * scale, 100 * share * scale, 60 * share * scale, 40 * share * scale]
        made = frame(
            {0: by_expert, 3: by_expert},
            who=_rank(dp_rank),
            seq=seq,
            after_s=100 + service.clock.now - 1_700_000_100,
            placement=halves(4, 2),
            uncovered=[wire.UncoveredLayer(5, "monolithic kernel")],
        )
        assert service.push(made).json()["result"] == "accepted"


def _problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    detail: str = response.json()["detail"]
    return detail


def test_ranks_show_totals_state_and_coverage(service: Service) -> None:
    _push_both(service)
    service.clock.now += 20
    [deployment] = service.get("/v1/ranks")["deployments"]
    assert (deployment["server"], deployment["model"], deployment["ep_size"]) == ("prod", "tiny", 2)
    assert [rank["tokens"] for rank in deployment["dp_ranks"]] == [300, 150]
    [first] = deployment["dp_ranks"][0]["producers"]
    assert (first["state"], first["age_seconds"], first["placement_version"]) == ("stale", 20, 1)
    assert first["uncovered"] == [{"layer": 5, "reason": "monolithic kernel"}]
    assert (first["mismatches"], first["host"], first["pid"]) == ([], "node", 40)
    none = service.get("/v1/ranks", server="other")
    assert none == {"now": service.clock.now, "deployments": []}


def test_ranks_show_how_a_producer_counts(service: Service) -> None:
    service.push(frame({0: [1, 1]}, strategy="kernel-per-step"))
    [rank] = service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    assert rank["producers"][0]["strategy"] == "kernel-per-step"


def test_ranks_list_what_does_not_add_up(service: Service) -> None:
    service.push(frame({0: [4, 3], 1: [0, 0]}, rows=[4, 0], tokens=4))
    [rank] = service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    assert rank["unseen_layers"] == [1]
    assert rank["producers"][0]["mismatches"] == [{"layer": 0, "law": "slots", "expected": 8, "got": 7}]


def test_the_histogram_has_counts_and_shares(service: Service) -> None:
    _push_both(service)
    answer = service.get("/v1/histogram")
    assert (answer["tokens"], answer["uncovered"]) == (450, [{"layer": 5, "reason": "monolithic kernel"}])
    assert [layer["layer"] for layer in answer["layers"]] == [0, 3]
    layer = answer["layers"][0]
    assert (layer["counts"], layer["slots"], layer["tokens"]) == ([300, 300, 180, 120], 900, 450)
    assert layer["shares"] == pytest.approx([1 / 3, 1 / 3, 0.2, 2 / 15])
    assert (layer["dp_ranks"], layer["reason"]) == ([0, 1], None)


def test_the_histogram_of_some_layers_of_one_dp_rank(service: Service) -> None:
    _push_both(service)
    answer = service.get("/v1/histogram", layer=[3, 5], dp_rank=1)
    assert (answer["tokens"], answer["dp_rank"]) == (150, 1)
    assert [(layer["layer"], layer["counts"]) for layer in answer["layers"]] == [(3, [100, 100, 60, 40])]


def test_a_window_answers_what_it_really_used(service: Service) -> None:
    _push_both(service)
    service.clock.now += 60
    _push_both(service, scale=3, seq=2)
    now = service.clock.now
    for start in ("-60s", "-1m", str(now - 60)):
        answer = service.get("/v1/histogram", start=start)
        assert answer["tokens"] == 900
        window = answer["window"]
        assert (window["start"], window["end"], window["truncated"]) == (now - 60, None, False)
        assert window["used_start"] == {"earliest": now - 60, "latest": now - 60}
        assert window["used_end"] == {"earliest": now, "latest": now}
    before = service.get("/v1/histogram", end="-1s")
    assert (before["tokens"], before["window"]["used_end"]["latest"]) == (450, now - 60)
    assert service.get("/v1/histogram", start="-100s")["window"]["truncated"] is True
    assert service.get("/v1/histogram", start="-1d")["window"]["truncated"] is False


def test_a_layer_that_was_not_seen_has_null_counts(service: Service) -> None:
    service.push(frame({0: [4, 4], 1: [0, 0]}, tokens=4))
    layer = service.get("/v1/histogram")["layers"][1]
    assert (layer["counts"], layer["shares"], layer["slots"], layer["tokens"]) == (None, None, None, None)
    assert layer["reason"].startswith("not seen: DP ranks [0]")
    balance = service.get("/v1/balance")["layers"][1]
    assert balance["over_experts"]["loads"] is None


def test_balance_over_each_axis(service: Service) -> None:
    _push_both(service)
    answer = service.get("/v1/balance")
    for layer in answer["layers"]:
        assert layer["over_ep_ranks"]["loads"] == [600, 300]
        assert layer["over_ep_ranks"]["measures"]["imbalance_ratio"] == pytest.approx(4 / 3)
        assert layer["over_ep_ranks"]["measures"]["balancedness"] == pytest.approx(3 / 4)
        assert layer["over_dp_ranks"]["loads"] == [600, 300]
        assert layer["over_experts"]["measures"]["max_vio"] == pytest.approx(300 / 225 - 1)
        assert layer["over_experts"]["measures"]["dead"] == 0
    assert answer["dp_tokens"]["loads"] == [300, 150]
    assert answer["summary"]["over_ep_ranks"] == {
        **{name: pytest.approx(4 / 3) for name in ("worst", "p50", "p90", "ratio_of_sums")},
        "worst_layer": 0,
        "layers": 2,
    }


def test_idle_and_gated_windows_are_null_with_a_reason(service: Service) -> None:
    _push_both(service)
    service.clock.now += 300
    idle = service.get("/v1/balance", start="-1m")
    assert idle["summary"]["over_experts"]["worst"] is None
    assert idle["layers"][0]["over_experts"]["measures"] is None
    assert idle["layers"][0]["over_experts"]["reason"] == "idle: no tokens in the window"
    gated = service.get("/v1/balance", min_tokens=451)
    assert gated["layers"][0]["over_ep_ranks"]["measures"] is None
    assert gated["layers"][0]["over_ep_ranks"]["reason"] == "too few tokens: 450 of at least 451"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/histogram?layer=9", 404, "[0, 3, 5]"),
        ("/v1/histogram?dp_rank=7", 404, "[0, 1]"),
        ("/v1/balance?model=other", 404, "server=prod model=tiny"),
        ("/v1/balance?start=yesterday", 400, "-5m"),
        ("/v1/balance?start=nan", 400, "-5m"),
        ("/v1/balance?start=-1m&end=-2m", 400, "after end"),
        ("/v1/balance?min_tokens=-1", 422, "min_tokens"),
        ("/v1/histogram?layer=x", 422, "layer"),
        ("/v1/nothing", 404, "/docs"),
        ("/v1/ingest", 405, "POST"),
    ],
)
def test_problems_say_what_to_do(service: Service, path: str, status: int, words: str) -> None:
    _push_both(service)
    assert words in _problem(service.client.get(path), status)


def test_which_deployment_must_be_said_when_there_are_several(service: Service) -> None:
    assert "MOESCOPE=1" in _problem(service.client.get("/v1/balance"), 404)
    service.push(frame({0: [1, 1]}))
    service.push(frame({0: [1, 1]}, who=producer(server="canary")))
    detail = _problem(service.client.get("/v1/histogram"), 400)
    assert "server=canary model=tiny, server=prod model=tiny" in detail
    assert service.get("/v1/histogram", server="canary")["server"] == "canary"


def test_a_deployment_that_expired_does_not_stand_in_the_way(service: Service) -> None:
    service.push(frame({0: [1, 1]}, who=producer(model="old")))
    service.clock.now += 3601
    service.push(frame({0: [1, 1]}))
    assert service.get("/v1/histogram")["model"] == "tiny"
    assert service.get("/v1/histogram", model="old")["tokens"] == 1


def test_a_rank_that_vanished_is_not_an_idle_one(service: Service) -> None:
    _push_both(service)
    service.clock.now += 60
    made = frame(
        {0: [900, 900, 900, 900], 3: [900, 900, 900, 900]}, who=_rank(0), seq=2, placement=halves(4, 2)
    )
    assert service.push(made).status_code == 200
    answer = service.get("/v1/balance", start="-60s")
    assert answer["dp_ranks"] == [0]
    assert answer["dp_tokens"]["measures"] is None
    assert answer["dp_tokens"]["reason"].startswith("fewer than two DP ranks")
    assert answer["layers"][0]["over_ep_ranks"]["measures"] is not None
    assert service.get("/v1/balance")["dp_ranks"] == [0, 1]


def test_an_unexpected_failure_is_a_problem_too(start_service: Callable[..., Service]) -> None:
    broken: list[bool] = []

    def clock() -> float:
        if broken:
            raise RuntimeError("no clock")
        return 1_700_000_100.0

    service = start_service(use_clock=clock)
    service.push(frame({0: [1, 1]}))
    broken.append(True)
    assert "report it" in _problem(service.client.get("/v1/ranks"), 500)
    broken.clear()
    assert service.client.get("/v1/ranks").status_code == 200


def test_probes(service: Service) -> None:
    assert service.get("/healthz") == {"status": "ok"}
    assert service.get("/readyz") == {"status": "ready", "producers": 0, "stale_producers": 0}


def test_a_rank_that_computed_nothing_of_a_phase_takes_part_in_it(service: Service) -> None:
    counts = {0: [4, 4, 4, 4]}
    service.push(frame(counts, who=_rank(0), decode=counts))
    service.push(frame(counts, who=_rank(1), decode={0: [0, 0, 0, 0]}))
    service.clock.now += 60
    answer = service.get("/v1/balance", phase="decode")
    assert (answer["dp_ranks"], answer["dp_tokens"]["loads"]) == ([0, 1], [8, 0])


def test_the_trend_has_the_imbalance_of_each_interval(service: Service) -> None:
    begin, totals = 1_700_000_100, [[0, 0, 0, 0], [0, 0, 0, 0]]

    def push(rank: int, round_: int) -> None:
        service.clock.now = begin + 5 * round_
        after_s = service.clock.now - 1_700_000_000.0
        counts = {0: totals[rank]}
        made = frame(counts, who=_rank(rank), seq=round_ + 1, after_s=after_s, placement=halves(4, 1))
        assert service.push(made).json()["result"] == "accepted"

    push(0, 0)
    push(1, 0)
    for i, slots in enumerate(([8, 0, 0, 0], [4, 0, 4, 0], [6, 0, 2, 0], [2, 0, 2, 0])):
        rank = i % 2  # the ranks report by turns, so no interval has frames of both
        totals[rank] = [a + b for a, b in zip(totals[rank], slots, strict=True)]
        push(rank, i + 1)
    answer = service.get("/v1/trend", step=5, points=4)
    assert answer["at"] == [begin + 5 * i for i in range(1, 5)]
    assert answer["ratio_of_sums"] == [2, 1, 1.5, 1]


def test_tokens_that_chose_no_expert_are_not_idle(service: Service) -> None:
    service.push(frame({0: [0, 0, 0, 0]}, rows=[5], tokens=5))
    layer = service.get("/v1/histogram")["layers"][0]
    assert (layer["tokens"], layer["slots"], layer["shares"]) == (5, 0, None)
    assert layer["reason"].startswith("no slots")
