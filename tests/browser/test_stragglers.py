"""Who waits for whom: the numbers of /v1/stragglers in the view Ranks."""

from __future__ import annotations

from playwright.sync_api import expect

from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Shape
from tests.browser.chrome import Watched
from tests.browser.reading import cells, tile
from tests.browser.serving import Clock, Serving, feed
from tests.service.frames import frame, halves, producer


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_a_hot_rank_that_alternates(empty: Serving, clock: Clock, watched: Watched) -> None:
    shape = Shape(layers=4, experts=64, top_k=8)
    feed(empty, clock, Plan(ranks=8, shape=shape, alternate=2.5), seconds=30)
    page = watched.open(empty.url, "#/ranks")
    answer = empty.get("/v1/stragglers", start="-1m")
    cost, windowed = answer["straggler_cost"], answer["windowed_straggler_share"]
    assert cost > 0.5
    assert windowed < cost / 3
    assert tile(page, "Straggler cost") == _percent(cost)
    assert tile(page, "By the window alone") == _percent(windowed)
    assert tile(page, "Hottest EP rank") == str(answer["hottest_rank"])
    assert tile(page, "Steps joined") == f"{answer['stages'][0]['joined']:,}"
    expect(page.locator("main")).to_contain_text(f"{_percent(cost - windowed)} only in the single steps")
    order = sorted(answer["layers"], key=lambda layer: (-layer["straggler_cost"], layer["layer"]))
    assert cells(page, "Layers by straggler cost") == [
        [
            str(layer["layer"]),
            "",
            _percent(layer["straggler_cost"]),
            _percent(layer["windowed_straggler_share"]),
            f"{layer['hottest_rank']} ({_percent(max(layer['hottest']) / sum(layer['hottest']))}"
            f" of {layer['steps']:,} steps)",
        ]
        for layer in order
    ]
    shares = [times / sum(answer["hottest"]) for times in answer["hottest"]]
    waited = answer["max_slots"] - answer["mean_slots"]
    assert [[row[0], row[2], row[4]] for row in cells(page, "How often each EP rank was the hottest")] == [
        [str(rank), _percent(shares[rank]), _percent(answer["caused"][rank] / waited)]
        for rank in sorted(range(len(shares)), key=lambda rank: -shares[rank])
    ]
    assert watched.axe() == []
    table = page.get_by_role("table", name="Layers by straggler cost")
    table.get_by_role("link").first.click()
    expect(page.get_by_role("heading", name=f"Layer {order[0]['layer']}")).to_be_visible()


def test_no_loads_of_steps_is_a_reason(empty: Serving, clock: Clock, watched: Watched) -> None:
    clock.now += 1
    empty.push(frame({1: [400, 100, 50, 50]}, who=producer(ep_size=2), placement=halves(4, 1)))
    page = watched.open(empty.url, "#/ranks")
    reason = empty.get("/v1/stragglers")["reason"]
    assert "no capturer tells" in reason
    expect(page.get_by_text(f"No straggler cost: {reason}.")).to_be_visible()
    expect(page.get_by_role("table", name="Layers by straggler cost")).to_be_hidden()
