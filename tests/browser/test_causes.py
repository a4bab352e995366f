"""Who causes the waiting: by EP rank, sorted by what matters, all ranks reachable."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.chrome import Watched
from tests.browser.reading import TIMES, cells
from tests.browser.serving import Clock, Serving, feed
from tests.service.advice.fleets import plan
from tests.service.frames import frame, halves, producer

TABLE = "Who causes the waiting, by EP rank"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _rows(page: Page) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in cells(page, TABLE)}


def _by_rank(answer: dict[str, Any]) -> list[tuple[float, float]]:
    """Share of the waiting that each EP rank caused, and of steps and layers in which it was the busiest."""
    total = answer["max_slots"] - answer["mean_slots"]
    times = sum(answer["hottest"])
    return [
        (caused / total, hottest / times)
        for caused, hottest in zip(answer["caused"], answer["hottest"], strict=True)
    ]


def test_the_rank_that_causes_the_waiting_is_first(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(ranks=32, layers=6, experts=64, hot_rank=1.6, steps_per_s=4.0), 70)
    page = watched.open(empty.url)
    answer = empty.get("/v1/stragglers", start="-1m")
    expected = _by_rank(answer)
    assert sum(caused for caused, _ in expected) > 0.999999
    first = page.get_by_role("table", name=TABLE).locator("tbody tr").first
    expect(first.locator("th")).to_have_text("0")
    assert len(_rows(page)) == 12
    page.get_by_role("button", name="Show all 32 EP ranks").click()
    rows = _rows(page)
    assert [row[1:3] for row in rows.values()] == [
        [_percent(caused), _percent(busiest)]
        for caused, busiest in sorted(expected, key=lambda item: -item[0])
    ]
    assert sorted(map(int, rows)) == list(range(32))
    [hot] = empty.get("/v1/view", start="-1m", layer=_worst_of(answer, 0), parts="hot")["hot"]
    where = f"layer {_worst_of(answer, 0)} \u00b7 expert {hot['expert']} ({hot['over_fair']:.2f}{TIMES})"
    assert rows["0"][5] == where
    expect(page.get_by_role("img", name="Load of EP rank 31 over time")).to_be_visible()
    line = page.get_by_role("img", name="Load of EP rank 0 over time").locator("path").last
    assert "L" in (line.get_attribute("d") or "")
    assert watched.axe() == []


def _worst_of(answer: dict[str, Any], rank: int) -> int:
    return int(max(answer["layers"], key=lambda layer: layer["caused"][rank])["layer"])


def test_heads_sort_and_say_so(empty: Serving, clock: Clock, watched: Watched) -> None:
    feed(empty, clock, plan(ranks=32, layers=6, experts=64, hot_rank=1.6, steps_per_s=4.0), 70)
    page = watched.open(empty.url)
    table = page.get_by_role("table", name=TABLE)
    head = table.get_by_role("columnheader", name="EP rank")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert list(_rows(page)) == [str(rank) for rank in range(12)]
    head.get_by_role("button").press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert list(_rows(page)) == [str(rank) for rank in range(31, 19, -1)]
    expect(table.locator("th[aria-sort]")).to_have_count(1)
    clock.now += 1
    page.reload()
    watched.settled()
    layers = page.get_by_role("table", name="Worst layers")
    layers.get_by_role("button", name="layer", exact=True).click()
    assert layers.locator("tbody th").all_inner_texts() == [f"layer {layer}" for layer in range(3, 9)]


def test_without_loads_of_steps_it_is_by_the_sums_of_the_window(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    who = producer(ep_size=2)
    counts = {1: [400, 100, 50, 50], 3: [10, 10, 180, 400]}
    empty.push(frame(counts, who=who, placement=halves(4, 2), epoch=int(clock.now * 1e9)))
    clock.now += 5
    page = watched.open(empty.url, "#/overview?window=all")
    panel = page.locator("section", has=page.get_by_role("heading", name="Who causes the waiting"))
    expect(panel).to_contain_text("by the window's sums, since the loads of single steps are not known")
    # Above the mean of 300 are 200 of rank 0 in layer 1 and 280 of rank 1 in layer 3.
    rows = _rows(page)
    assert {rank: row[1:4] for rank, row in rows.items()} == {
        "0": [_percent(200 / 480), _percent(0.5), f"0.87{TIMES}"],
        "1": [_percent(280 / 480), _percent(0.5), f"1.13{TIMES}"],
    }
    assert rows["1"][5] == f"layer 3 \u00b7 expert 3 (2.67{TIMES})"


def test_ranks_that_tie_share_the_waiting_of_their_layer(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    counts = {1: [400, 400, 0, 0], 3: [150, 150, 100, 400]}
    who = producer(ep_size=4)
    empty.push(frame(counts, who=who, placement=halves(4, 2, 4), epoch=int(clock.now * 1e9)))
    clock.now += 5
    page = watched.open(empty.url, "#/overview?window=all")
    # Above the mean of 200 are 200 of ranks 0 and 1 together in layer 1, and 200 of rank 3 in layer 3.
    assert {rank: row[1:3] for rank, row in _rows(page).items()} == {
        "0": [_percent(0.25), _percent(0.25)],
        "1": [_percent(0.25), _percent(0.25)],
        "2": [_percent(0.0), _percent(0.0)],
        "3": [_percent(0.5), _percent(0.5)],
    }
