"""Deployments of which workers are missing, and what every answer has to say of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

AT = EPOCH / 1e9
EVEN = [100, 100, 100, 100]
"""Slots of 200 tokens with top-k 2."""
PARTIAL = "partial: the tokens of DP ranks [1] are not seen in this layer"


def push(
    service: Service,
    dp_rank: int,
    counts: Mapping[int, Sequence[int]],
    *,
    pp_rank: int = 0,
    tp_rank: int = 0,
    sizes: tuple[int, int, int] = (2, 1, 1),
    **fields: Any,
) -> None:
    """Push a frame; ``sizes`` are DP, PP and TP. Its EP rank is its DP rank, of two."""
    who = producer(
        dp_rank=dp_rank,
        dp_size=sizes[0],
        pp_rank=pp_rank,
        pp_size=sizes[1],
        tp_rank=tp_rank,
        tp_size=sizes[2],
        ep_rank=dp_rank,
        ep_size=2,
    )
    made = frame(counts, who=who, **{"placement": halves(4, len(counts)), **fields})
    assert service.push(made).json()["result"] == "accepted"


def balance(service: Service, layer: int = 0, **params: Any) -> dict[str, Any]:
    [found] = service.get("/v1/balance", layer=layer, **params)["layers"]
    return dict(found)


def hold_partial(service: Service, layer: int = 0, why: str = "", **params: Any) -> None:
    """DP rank 1 is missing in a layer, and no answer has a load of DP or EP ranks for it."""
    found = balance(service, layer, **params)
    for axis in ("over_dp_ranks", "over_ep_ranks"):
        assert (found[axis]["loads"], found[axis]["measures"]) == (None, None), axis
        assert found[axis]["reason"].startswith(PARTIAL)
        assert why in found[axis]["reason"]
    [histogram] = service.get("/v1/histogram", layer=layer, **params)["layers"]
    assert histogram["missing_dp_ranks"] == [1]
    view = service.get("/v1/view", parts=["flows"], flow_layer=layer, **params)
    assert view["flows"] is None
    assert view["flows_reason"].startswith(PARTIAL)
    params.pop("phase", None)  # a step has both
    [straggler] = service.get("/v1/stragglers", layer=layer, **params)["layers"]
    assert straggler["windowed_straggler_share"] is None


def hold_whole(service: Service, loads: Sequence[int], layer: int = 0, **params: Any) -> None:
    found = balance(service, layer, **params)
    assert (found["over_dp_ranks"]["loads"], found["over_dp_ranks"]["reason"]) == (list(loads), None)
    assert found["over_ep_ranks"]["measures"] is not None
    assert service.get("/v1/histogram", layer=layer, **params)["layers"][0]["missing_dp_ranks"] == []
