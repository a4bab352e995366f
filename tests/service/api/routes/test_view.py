"""/v1/view, /v1/trend and /v1/compare: the page's numbers are those of the other queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from moescope.capture import wire
from moescope.service.api.routes import view as view_route
from moescope.service.windows.ep_rank_sums import ep_rank_sums
from moescope.service.windows.expert_ep_ranks import SEVERAL, distinct, ep_ranks_of_experts
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, placement, producer

EXPERTS = 8
AT = EPOCH / 1e9


def _push(service: Service, dp_rank: int, counts: dict[int, list[int]], seq: int = 1, **fields: Any) -> None:
    who = producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2)
    made = frame(counts, who=who, seq=seq, placement=halves(EXPERTS, len(counts)), **fields)
    assert service.push(made).status_code == 200


def _push_both(service: Service) -> None:
    service.clock.now = AT + 10
    _push(service, 0, {1: [100, 50, 50, 0, 40, 10, 0, 50], 3: [300, 0, 0, 0, 0, 0, 0, 0]})
    _push(service, 1, {1: [0, 0, 0, 0, 100, 100, 100, 0], 3: [75, 75, 75, 75, 0, 0, 0, 0]})


def test_the_view_repeats_balance_and_histogram(service: Service) -> None:
    _push_both(service)
    view = service.get("/v1/view", parts=["counts", "owners"])
    balance, histogram = service.get("/v1/balance"), service.get("/v1/histogram")
    for name in ("server", "model", "window", "tokens", "min_tokens", "uncovered"):
        assert view[name] == balance[name], name
    for axis in ("over_ep_ranks", "over_experts"):
        assert view[axis] == balance["summary"][axis]
    for mine, theirs in zip(view["layers"], balance["layers"], strict=True):
        assert (mine["layer"], mine["tokens"]) == (theirs["layer"], theirs["tokens"])
        assert mine["ep_slots"] == theirs["over_ep_ranks"]["loads"]
        assert mine["over_ep_ranks"] == theirs["over_ep_ranks"]["measures"]
        assert mine["over_experts"] == theirs["over_experts"]["measures"]
    assert view["counts"] == [layer["counts"] for layer in histogram["layers"]]
    assert [layer["slots"] for layer in view["layers"]] == [layer["slots"] for layer in histogram["layers"]]
    assert view["owners"] == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2
    assert view["flows"] is None


def test_sums_by_ep_rank_are_those_of_the_loads_in_whose_place_they_are(service: Service) -> None:
    _push_both(service)
    _push(service, 0, {1: [200, 50, 50, 0, 70, 10, 0, 120], 3: [400, 0, 0, 0, 40, 0, 60, 0]}, seq=2)
    full, view = service.get("/v1/view"), service.get("/v1/view", parts="ep_ranks")
    loads = {layer["layer"]: layer["ep_slots"] for layer in full["layers"]}
    assert loads == {1: [300, 500], 3: [700, 100]}
    assert full["ep_ranks"] is None
    assert [layer["ep_slots"] for layer in view["layers"]] == [None, None]
    assert [layer["over_ep_ranks"] for layer in view["layers"]] == [
        layer["over_ep_ranks"] for layer in full["layers"]
    ]
    assert view["ep_ranks"] == {
        "slots": [1000, 600],
        "caused": [300, 100],
        "busiest": [1, 1],
        "worst_layer": [3, 1],
    }
    assert service.get("/v1/view", parts="ep_ranks", layer=1)["ep_ranks"]["worst_layer"] == [None, 1]


def test_ep_ranks_that_tie_share_the_waiting() -> None:
    found = ep_rank_sums([(4, np.array([3.0, 3.0, 0.0])), (5, np.array([2.0, 2.0, 2.0]))])
    assert found.caused.tolist() == [0.5, 0.5, 0]
    assert found.busiest.tolist() == pytest.approx([5 / 6, 5 / 6, 1 / 3])
    assert found.worst_layer == [4, 4, None]
    nothing = ep_rank_sums([])
    assert (nothing.slots.tolist(), nothing.worst_layer) == ([], [])


def test_the_view_of_one_rank(service: Service) -> None:
    _push_both(service)
    view = service.get("/v1/view", dp_rank=1, parts="counts")
    assert view["counts"] == [layer["counts"] for layer in service.get("/v1/histogram", dp_rank=1)["layers"]]
    assert [rank["dp_rank"] for rank in view["dp_ranks"]] == [1]
    assert service.client.get("/v1/view", params={"dp_rank": 7}).status_code == 404


def test_flows_go_from_dp_ranks_to_ep_ranks(service: Service) -> None:
    _push_both(service)
    one = service.get("/v1/view", parts="flows", flow_layer=1)["flows"]
    assert one == [[200, 100], [0, 300]]
    every = service.get("/v1/view", parts="flows")["flows"]
    assert every == [[500, 100], [300, 300]]
    assert service.client.get("/v1/view", params={"parts": "flows", "flow_layer": 2}).status_code == 404


def test_flows_have_a_reason_where_placement_is_not_known(service: Service) -> None:
    service.push(frame({0: [1, 1]}, who=producer(dp_rank=0, dp_size=2, ep_size=2)))
    view = service.get("/v1/view", parts=["flows", "owners"])
    assert view["flows"] is None
    assert "no placement was known" in view["flows_reason"]
    assert view["owners"] == [None]


def test_a_rank_that_died_within_the_window_has_the_rate_of_all_of_it(service: Service) -> None:
    for second in range(60):
        service.clock.now = AT + second + 1
        for rank in range(2 if second < 20 else 1):
            _push(service, rank, {1: [2 * (second + 1)] * EXPERTS}, seq=second + 1, after_s=second + 1)

    def seconds(**query: float) -> list[float]:
        return [rank["seconds"] for rank in service.get("/v1/view", **query)["dp_ranks"]]

    assert seconds(start=AT + 10) == [50, 50]  # not 10 of the rank whose last frame came at 20
    assert seconds(start=AT + 10, end=AT + 50) == [40, 40]
    assert seconds() == [60, 60]
    assert seconds(start=AT + 5, end=AT + 15) == [10, 10]
    assert seconds(start=AT + 30, end=AT + 50) == [20, 0]  # rank 1 computed nothing from then on


def test_owners_are_the_newest_placement_s() -> None:
    layer = wire.MoeLayer(4, 4, 2)
    old = ((layer,), halves(4, 1))
    new = ((layer,), placement([0, 1, 2, 3, 0, 1], [1, 1, 0, 0, 1, 0], 1, version=2))
    assert ep_ranks_of_experts(layer, [new, old]) == [1, SEVERAL, 0, 0]
    assert ep_ranks_of_experts(wire.MoeLayer(5, 4, 2), [old]) is None


def test_many_ranks_that_tell_the_same_placement_are_looked_at_once() -> None:
    layer, other = wire.MoeLayer(4, 4, 2), wire.MoeLayer(5, 4, 2)
    old, new = halves(4, 1), placement([0, 1, 2, 3, 0, 1], [1, 1, 0, 0, 1, 0], 1, version=2)
    unlike = placement([3, 2, 1, 0], [0, 0, 1, 1], 1, version=2)
    told = (
        [((layer,), old), ((other,), old)] * 3 + [((layer,), new), ((layer,), unlike)] * 2 + [((layer,), old)]
    )
    found = distinct(told)
    assert found == [((layer,), old), ((other,), old), *[((layer,), new), ((layer,), unlike)] * 2]
    assert ep_ranks_of_experts(layer, found) == ep_ranks_of_experts(layer, told) == [1, SEVERAL, 0, 0]


def test_the_trend_has_rates_and_imbalance_by_interval(service: Service) -> None:
    for second, (even, hot) in enumerate([(0, 0), (100, 0), (200, 0), (200, 100), (200, 100)]):
        service.clock.now = AT + 10 * second + 1
        counts = {0: [even] * EXPERTS}
        counts[0][0] += hot * EXPERTS
        _push(service, 0, counts, seq=second + 1, after_s=10 * second)
        _push(service, 1, {0: [even] * EXPERTS}, seq=second + 1, after_s=10 * second)
    service.clock.now = AT + 41
    trend = service.get("/v1/trend", step=10, points=5)
    assert trend["at"] == [AT + 10 * i for i in range(5)]
    # 800 slots of 2 a token in ten seconds, then the same from rank 0 alone.
    assert trend["tokens_per_second"][0][2:4] == [40, 40]
    assert trend["tokens_per_second"][1][2:5] == [40, 40, 0]
    assert trend["ratio_of_sums"][2:4] == [1, 1]
    assert trend["ratio_of_sums"][4] == trend["worst"][4] == 2
    assert trend["ratio_of_sums"][0] is None
    assert service.get("/v1/trend", step=10, points=5) == trend


def test_a_hot_spot_is_the_busiest_rank_and_the_busiest_expert_that_only_it_holds(service: Service) -> None:
    who = producer(ep_size=2)
    service.push(frame({1: [1, 60, 30, 29], 3: [0, 0, 0, 0]}, who=who, placement=halves(4, 2)))
    first, idle = service.get("/v1/view", parts="hot")["hot"]
    assert first == {"ep_rank": 0, "expert": 1, "over_fair": 2.0}
    assert idle is None
    assert service.get("/v1/view")["hot"] is None
    service.push(frame({1: [1, 50, 29, 40]}, who=producer(server="other")))
    unplaced = service.get("/v1/view", parts="hot", server="other")["hot"]
    assert unplaced == [{"ep_rank": None, "expert": 1, "over_fair": pytest.approx(50 / 30)}]


def test_the_trend_has_the_load_of_each_ep_rank_where_asked(service: Service) -> None:
    who, begun = producer(ep_size=2), service.clock.now
    for number in range(1, 4):
        service.clock.now = begun + 10 * number
        counts = {1: [30 * number, 0, 10 * number, 0], 3: [10 * number, 0, 30 * number, 0]}
        service.push(frame(counts, who=who, placement=halves(4, 2), seq=number, after_s=10.0 * number))
    answer = service.get("/v1/trend", step=10, points=2, parts="ep_ranks")
    assert answer["ep_ranks"] == [[1.0, 1.0], [1.0, 1.0]]
    assert answer["ratio_of_sums"] == [1.5, 1.5]
    one = service.get("/v1/trend", step=10, points=4, parts="ep_ranks", layer=1)
    assert one["ep_ranks"] == [[None, 1.5, 1.5, 1.5], [None, 0.5, 0.5, 0.5]]
    assert service.get("/v1/trend", step=10, points=2)["ep_ranks"] is None
    assert one["ep_rank_ids"] == [0, 1]
    second = service.get("/v1/trend", step=10, points=4, ep_rank=[1, 1], layer=1)
    assert (second["ep_rank_ids"], second["ep_ranks"]) == ([1], one["ep_ranks"][1:])
    refused = service.client.get("/v1/trend", params={"ep_rank": 2})
    assert (refused.status_code, refused.json()["detail"]) == (404, "There is no EP rank 2; they are 0 to 1.")


def test_of_thousands_of_ep_ranks_an_answer_has_those_that_are_named(service: Service) -> None:
    ranks = 4096
    counts = np.ones(ranks, dtype=np.int64)
    counts[4000] = 101
    for number in (1, 2):
        service.clock.now += 10
        sent = frame(
            {0: (number * counts).tolist()},
            who=producer(ep_size=ranks),
            placement=halves(ranks, 1, ranks),
            seq=number,
            after_s=10.0 * number,
        )
        service.push(sent)
    refused = service.client.get("/v1/trend", params={"parts": "ep_ranks"})
    assert refused.status_code == 400
    assert "name EP ranks with ep_rank, 1092 at most" in refused.json()["detail"]
    trend = service.get("/v1/trend", step=10, points=1, ep_rank=[4000, 7])
    assert trend["ep_rank_ids"] == [7, 4000]
    assert trend["ep_ranks"] == [[round(ranks / 4196, 4)], [round(101 * ranks / 4196, 4)]]


def test_flows_of_very_many_ranks_have_a_reason_and_those_of_one_are_there(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_route, "MAX_FLOWS", 3)
    _push_both(service)
    view = service.get("/v1/view", parts="flows")
    assert view["flows"] is None
    assert view["flows_reason"].startswith("2 DP ranks by 2 EP ranks are more than 3 numbers; dp_rank= of")
    assert service.get("/v1/view", parts="flows", dp_rank=1)["flows"] == [[300, 300]]


def test_the_trend_bridges_intervals_without_a_snapshot(service: Service) -> None:
    for seq, (second, slots) in enumerate([(1, 0), (11, 80), (41, 320)], start=1):
        service.clock.now = AT + second
        _push(service, 0, {0: [slots] * EXPERTS}, seq=seq, after_s=second)
        _push(service, 1, {0: [slots] * EXPERTS}, seq=seq, after_s=second)
    # 320 tokens in ten seconds, then 960 in thirty, of which only the end was seen.
    service.clock.now = AT + 50
    trend = service.get("/v1/trend", step=10, points=5)
    assert trend["at"][-1] == AT + 50
    assert trend["tokens_per_second"] == [[0, 32, 32, 32, 32]] * 2
    assert trend["ratio_of_sums"][1:] == [1] * 4
    service.clock.now = AT + 100
    later = service.get("/v1/trend", step=10, points=5)
    assert later["tokens_per_second"] == []
    assert later["ratio_of_sums"] == [None] * 5


def test_compare_gives_differences_and_divergence(service: Service) -> None:
    service.clock.now = AT + 10
    _push(service, 0, {1: [100] * EXPERTS, 3: [100] * EXPERTS})
    service.clock.now = AT + 20
    _push(service, 0, {1: [200] * EXPERTS, 3: [900] + [100] * 7}, seq=2)
    window = {"start": AT + 10, "base_end": AT + 10}
    answer = service.get("/v1/compare", **window)
    same, other = answer["layers"]
    assert (same["divergence"], same["difference"]) == (0, [0] * EXPERTS)
    assert other["difference"] == [0.875] + [-0.125] * 7
    expected = jensenshannon([1] + [0] * 7, [1] * 8, base=2) ** 2
    assert other["divergence"] == pytest.approx(expected)
    idle = service.get("/v1/compare", start=AT + 20, base_end=AT + 10)["layers"][0]
    assert idle["divergence"] is None
    assert "idle" in idle["reason"]


def test_models_of_another_shape_can_not_be_compared(service: Service) -> None:
    service.push(frame({0: [1, 1]}))
    service.push(frame({0: [1, 1, 1]}, who=producer(model="other")))
    response = service.client.get("/v1/compare", params={"model": "tiny", "base_model": "other"})
    assert response.status_code == 400
    assert "share no layer" in response.json()["detail"]


def test_loads_of_replicas_are_an_estimate_unless_the_worker_counts_their_copies(service: Service) -> None:
    """One row a step: vLLM sends all of an expert's slots to one of its two copies."""
    service.clock.now = AT + 10
    who = producer(ep_size=2)
    where = placement([0, 1, 2, 3, 0, 1], [0, 0, 0, 1, 1, 1], 1)

    def push(seq: int, slots: int, **fields: Any) -> None:
        made = frame({1: [slots, 0, slots, 0]}, who=who, seq=seq, placement=where, **fields)
        assert service.push(made).status_code == 200

    push(1, 100)
    [layer] = service.get("/v1/view", min_tokens=1)["layers"]
    assert layer["ep_slots"] == [150, 50]
    assert layer["ep_estimate"].startswith("up to 100 slots went to experts with copies on several EP ranks")
    [same] = service.get("/v1/balance", min_tokens=1)["layers"]
    assert same["ep_estimate"] == layer["ep_estimate"]
    metrics = service.client.get("/metrics").text
    assert 'moescope_layer_estimated_slots_total{layer="1"' in metrics


def test_loads_that_the_worker_counted_are_no_estimate(service: Service) -> None:
    service.clock.now = AT + 10
    where = placement([0, 1, 2, 3, 0, 1], [0, 0, 0, 1, 1, 1], 1)
    by_rank = wire.pack_counts(np.array([200, 0]))
    made = frame({1: [100, 0, 100, 0]}, who=producer(ep_size=2), placement=where, ep_slots=by_rank)
    assert service.push(made).status_code == 200
    [layer] = service.get("/v1/view", min_tokens=1)["layers"]
    assert (layer["ep_slots"], layer["ep_estimate"]) == ([200, 0], None)
