"""Zero means that nothing was computed: an idle DP rank makes no zeros of what was not seen."""

from __future__ import annotations

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.windows.missing import AT, EVEN, balance, hold_whole, push


def test_an_idle_dp_rank_makes_no_zeros_of_what_was_not_seen(service: Service) -> None:
    idle = [0] * 4
    push(service, 0, {0: idle, 1: idle}, tokens=0, steps=0)
    push(service, 1, {0: idle, 1: [250] * 4}, tokens=500)
    reason = "not seen: DP ranks [1] computed tokens, the layer's router reported none"
    found = balance(service)
    for axis in ("over_dp_ranks", "over_ep_ranks", "over_experts"):
        assert found[axis] == {"loads": None, "measures": None, "reason": reason}
    [histogram, _] = service.get("/v1/histogram", start=AT, step="1h")["layers"]
    assert (histogram["counts"], histogram["tokens"], histogram["reason"]) == (None, None, reason)
    [interval] = service.get("/v1/histogram", start=AT, step="1h")["series"]
    assert interval["layers"][0] == {"layer": 0, "tokens": None, "counts": None, "not_conserved": None}
    view = service.get("/v1/view", parts=["counts", "flows"])
    assert (view["counts"], view["flows_reason"]) == ([None, [250] * 4], reason)
    assert service.get("/v1/compare")["layers"][0]["reason"] == reason
    assert service.get("/v1/drift")["layers"][0]["reason"] == reason
    hold_whole(service, [0, 1000], 1)


def test_an_idle_dp_rank_makes_no_zeros_of_tokens_of_unknown_phase(service: Service) -> None:
    idle = [0] * 4
    push(service, 0, {0: idle}, decode={0: idle}, tokens=0, steps=0)
    push(service, 1, {0: [250] * 4})
    reason = "the phases of 500 tokens of DP ranks [1] are not known"
    for phase in ("prefill", "decode"):
        found = balance(service, phase=phase)
        for axis in ("over_dp_ranks", "over_ep_ranks", "over_experts"):
            assert (found[axis]["loads"], found[axis]["measures"]) == (None, None)
            assert found[axis]["reason"].startswith(reason)
        [layer] = service.get("/v1/histogram", phase=phase)["layers"]
        assert (layer["counts"], layer["reason"][: len(reason)]) == (None, reason)
        assert service.get("/v1/drift", phase=phase)["layers"][0]["reason"].startswith(reason)


def test_an_idle_dp_rank_makes_no_zeros_of_a_layer_that_another_cannot_see(service: Service) -> None:
    idle = [0] * 4
    push(service, 0, {0: idle, 1: idle}, tokens=0, steps=0)
    push(service, 1, {1: EVEN}, uncovered=[wire.UncoveredLayer(0, "its kernel routes inside")])
    [layer, _] = service.get("/v1/histogram")["layers"]
    assert (layer["counts"], layer["reason"]) == (None, "not covered: its kernel routes inside")


def test_where_all_are_idle_zeros_are_zeros(service: Service) -> None:
    for dp_rank in (0, 1):
        push(service, dp_rank, {0: [0] * 4}, tokens=0, steps=0)
    [layer] = service.get("/v1/histogram")["layers"]
    assert (layer["counts"], layer["reason"]) == ([0] * 4, "idle: no tokens in the window")
