"""Parts that look like wholes: every answer that rests on a part says so, and names the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

ANSWERS = ("balance", "view", "trend", "advice", "stragglers", "histogram", "drift")


def push(service: Service, server: str, ranks: list[int], seq: int = 1, size: int = 4, **more: Any) -> None:
    for rank in ranks:
        who = producer(server=server, dp_rank=rank, dp_size=size, ep_rank=rank, ep_size=size)
        made = frame({0: [200 * seq] * 4}, who=who, seq=seq, placement=halves(4, 1, size), **more)
        assert service.push(made).status_code == 200


def partial(service: Service, route: str, server: str) -> str | None:
    answer = service.get(f"/v1/{route}", server=server)
    said: str | None = answer["partial"]
    return said


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    return start_service(min_tokens=1)


@pytest.mark.parametrize("route", ANSWERS)
def test_an_answer_of_a_part_says_so_and_names_the_rest(service: Service, route: str) -> None:
    push(service, "a", [0, 1])
    said = partial(service, route, "a")
    assert said == "a part: of 4 DP ranks [2, 3] never reported"
    push(service, "b", [2, 3])
    said = partial(service, route, "a")
    assert said is not None
    assert "server=b has DP ranks 2, 3" in said
    assert "same MOESCOPE_SERVER" in said
    push(service, "whole", [0, 1, 2, 3])
    assert partial(service, route, "whole") is None


@pytest.mark.parametrize("route", ["balance", "view", "histogram", "drift", "compare"])
def test_an_answer_about_one_rank_is_no_part(service: Service, route: str) -> None:
    """The others were left out because they were not asked for; they did not fall silent."""
    push(service, "a", [0, 1, 2, 3])
    answer = service.get(f"/v1/{route}", server="a", dp_rank=3)
    assert (answer["side"] if route == "compare" else answer)["partial"] is None


def test_a_rank_that_fell_silent_leaves_a_part(service: Service) -> None:
    push(service, "a", [0, 1, 2, 3])
    service.clock.now += 20
    push(service, "a", [0, 1, 2], seq=2)
    for route in ANSWERS:
        start = {} if route == "trend" else {"start": "-10s"}
        said = service.get(f"/v1/{route}", server="a", **start)["partial"]
        assert said == "a part: of 4 DP ranks [3] fell silent", route
    # While it computed it took part, and nobody reports now: that is the end of all, not a part.
    assert service.get("/v1/balance", server="a")["partial"] is None
    service.clock.now += 60
    assert service.get("/v1/balance", server="a", start="-10s")["partial"] is None


def test_both_sides_of_a_comparison_and_ranks_say_so(service: Service) -> None:
    push(service, "a", [0, 1])
    push(service, "b", [2, 3])
    push(service, "whole", [0, 1, 2, 3])
    answer = service.get("/v1/compare", server="whole", base_server="a")
    assert answer["side"]["partial"] is None
    assert "server=b has DP ranks 2, 3" in answer["base"]["partial"]
    by_name = {item["server"]: item for item in service.get("/v1/ranks")["deployments"]}
    assert by_name["a"]["other_parts"] == [{"server": "b", "dp_ranks": [2, 3]}]
    assert by_name["b"]["other_parts"] == [{"server": "a", "dp_ranks": [0, 1]}]
    assert "server=a has DP ranks 0, 1" in by_name["b"]["partial"]
    assert (by_name["whole"]["other_parts"], by_name["whole"]["partial"]) == ([], None)


def test_who_asks_which_server_is_meant_hears_of_the_parts(service: Service) -> None:
    push(service, "a", [0, 1])
    push(service, "b", [2, 3])
    for status, params in ((400, {}), (404, {"server": "c"})):
        response = service.client.get("/v1/balance", params=params)
        assert response.status_code == status
        assert "server=a and server=b have each other's missing DP ranks" in response.json()["detail"]


def test_a_window_over_a_change_of_sizes_says_why_it_has_no_balance_of_ranks(service: Service) -> None:
    push(service, "a", [0, 1, 2, 3])
    service.clock.now += 30
    push(service, "a", [0, 1], size=2, epoch=EPOCH + 10**12)
    service.clock.now += 30
    push(service, "a", [0, 1], size=2, seq=2, epoch=EPOCH + 10**12)
    answer = service.get("/v1/balance", server="a")
    changed = f"ask for start={int(service.clock.now) - 30} or later"
    [layer] = answer["layers"]
    for cell in (layer["over_ep_ranks"], layer["over_dp_ranks"], answer["dp_tokens"]):
        assert cell["measures"] is None
        assert "had 4 DP and 4 EP ranks in a part of the window, and 2 DP and 2 EP ranks" in cell["reason"]
        assert changed in cell["reason"]
    assert layer["over_experts"]["measures"]["imbalance_ratio"] == 1
    since = service.get("/v1/balance", server="a", start=service.clock.now - 30)
    assert since["layers"][0]["over_ep_ranks"]["measures"]["imbalance_ratio"] == 1
    assert since["dp_tokens"]["loads"] == [400, 400]
    assert since["partial"] is None
    states = {
        (rank["dp_rank"], item["state"], item["gone_reason"])
        for rank in service.get("/v1/ranks", server="a")["deployments"][0]["dp_ranks"]
        for item in rank["producers"]
    }
    gone = "the deployment has 2 DP ranks now"
    assert states == {(0, "counting", None), (1, "counting", None), (2, "gone", gone), (3, "gone", gone)}
