"""The view Pools: replicas side by side, as /v1/pools has them."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import expect

from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits, Shape
from tests.browser.chrome import Watched
from tests.browser.reading import TO, cells, compact, tile
from tests.browser.serving import Clock, Serving
from tests.service.frames import frame, halves, producer

PLAN = Plan(
    ranks=4,
    replicas=4,
    pool="chat/x",
    roles=True,
    replica_shift=2.0,
    shape=Shape(layers=3, experts=16, top_k=2),
    habits=Habits(skew=0.5, decode_shift=1.0),
    steps_per_s=2.0,
)


def _feed(serving: Serving, clock: Clock) -> None:
    fleets = [Fleet(deployment, int(clock.now) * 10**9) for deployment in PLAN.deployments]
    for _ in range(3):
        clock.now += 10
        for fleet in fleets:
            serving.push(*fleet.advance(10))


def _row(item: dict[str, Any]) -> list[str]:
    def known(name: str, write: str, scale: float = 1.0, unit: str = "") -> str:
        value = item[name]["value"]
        return TO if value is None else f"{format(scale * value, write)}{unit}"

    median = item["divergence"]["median"]
    return [
        item["server"],
        item["role"],
        item["state"],
        compact(item["tokens_per_second"]["value"]),
        known("tokens_over_mean", ".2f"),
        known("ep_imbalance_ratio", ".3f"),
        f"{known('worst_layer_imbalance_ratio', '.3f')} ({item['worst_layer']})",
        known("dp_imbalance_ratio", ".3f"),
        known("max_vio", ".2f"),
        known("hot_experts", ".0f"),
        known("straggler_cost", ".1f", 100, " %"),
        TO if median is None else f"{median:.4f}",
    ]


def test_replicas_roles_and_who_stands_out(empty: Serving, clock: Clock, watched: Watched) -> None:
    _feed(empty, clock)
    page = watched.open(empty.url, "#/pools?window=all")
    answer = empty.get("/v1/pools/chat%2Fx")
    assert cells(page, "Replicas") == [_row(item) for item in answer["deployments"]]
    assert tile(page, "Replicas") == "4"
    assert tile(page, "Tokens") == compact(answer["tokens"])
    for role in answer["roles"]:
        value = compact(role["tokens_per_second"]["value"])
        assert tile(page, f"Tokens per second, {role['role']}") == value
    # The last one, which decodes, has other experts than its sibling, and its sibling than it.
    assert {item["server"] for item in answer["stand_out"]} == {"simulated-2", "simulated-3"}
    for item in answer["stand_out"]:
        expect(page.locator(".health")).to_contain_text(item["text"])
    assert cells(page, "Prefill against decode") == [
        [
            str(layer["layer"]),
            f"{layer['prefill_tokens']:,}",
            f"{layer['decode_tokens']:,}",
            f"{layer['divergence']:.4f}",
            f"{layer['noise']:.4f}",
            "",
        ]
        for layer in answer["layers"]
    ]
    assert watched.axe() == []
    link = page.get_by_role("table", name="Replicas").get_by_role("link", name="simulated-3")
    link.focus()
    clock.now += 6
    with page.expect_response("**/v1/pools/**"):
        empty.push(frame({3: [1] * 16}, who=producer(server="other")))
    expect(link).to_be_focused()  # whatever is drawn anew
    link.click()
    expect(page.get_by_label("Model", exact=True)).to_have_value('["simulated-3","simulated/moe"]')
    expect(page.get_by_role("heading", name="Overview")).to_be_attached()


def test_without_a_pool_the_view_says_how_to_name_one(empty: Serving, clock: Clock, watched: Watched) -> None:
    clock.now += 1
    empty.push(frame({1: [400, 100, 50, 50]}, who=producer(ep_size=2), placement=halves(4, 1)))
    page = watched.open(empty.url, "#/pools")
    expect(page.locator(".nodata:visible")).to_contain_text("Set MOESCOPE_POOL")
    clock.now += 1
    who = producer(server="second", ep_size=2, pool="chat")
    empty.push(frame({1: [400, 100, 50, 50]}, who=who, placement=halves(4, 1)))
    expect(page.get_by_role("table", name="Replicas")).to_be_visible()
    expect(page.locator("main")).to_contain_text("second: no sibling")
