"""Hundreds and thousands of ranks: blocks that one looks into, and tables with pages of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Shape
from tests.browser.chrome import Watched
from tests.browser.reading import TIMES, cells, point
from tests.browser.serving import Clock, Serving, feed
from tests.service.frames import frame, halves, producer

RANKS, LAYERS, BLOCK = 256, 4, 8
THOUSANDS = 4096
CAUSES = "Who causes the waiting, by EP rank"
LOADS, FLOWS = "EP ranks by layer", "From DP rank to EP rank"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Serving]:
    """256 DP and EP ranks, one expert each, unevenly loaded."""
    clock = Clock()
    with Serving(clock) as serving:
        shape = Shape(layers=LAYERS, experts=RANKS, top_k=8)
        feed(serving, clock, Plan(ranks=RANKS, shape=shape, steps_per_s=1.0, rank_imbalance=2.0), seconds=20)
        yield serving


def _ratios(serving: Serving) -> tuple[list[int], np.ndarray]:
    """Layers, and slots by layer and EP rank as multiples of a fair share."""
    layers = serving.get("/v1/view", start="-1m")["layers"]
    slots = np.array([layer["ep_slots"] for layer in layers])
    return [layer["layer"] for layer in layers], slots / slots.mean(axis=1, keepdims=True)


def test_a_layer_shows_blocks_and_a_click_looks_into_one(fleet: Serving, watched: Watched) -> None:
    page = watched.open(fleet.url, "#/ranks")
    layers, ratios = _ratios(fleet)
    blocks = ratios.reshape(LAYERS, RANKS // BLOCK, BLOCK)
    row, column = np.unravel_index(int(blocks.max(axis=2).argmax()), blocks.shape[:2])
    hottest = int(column) * BLOCK + int(blocks[row, column].argmax())
    said = point(page, LOADS, row, column, LAYERS, RANKS // BLOCK)
    first = int(column) * BLOCK
    assert said.startswith(f"layer {layers[row]} \u00b7 EP rank {first}\u2013{first + 7} \u00b7 most: ")
    assert f"EP rank {hottest} \u00b7" in said
    assert f"{ratios[row, hottest]:.2f}{TIMES} a fair share" in said
    assert said.endswith(f"mean of the block: {blocks[row, column].mean():.2f}{TIMES} a fair share")
    expect(page.locator("main")).to_contain_text("All 256 EP ranks in blocks of 8. Click a block")
    assert watched.axe() == []
    page.get_by_role("application", name=LOADS).click(position=_at(page, LOADS, row, column, RANKS // BLOCK))
    page.wait_for_url(lambda url: f"ep={first}-{first + 7}" in url)
    expect(page.locator("main")).to_contain_text(f"EP ranks {first}\u2013{first + 7} of 256")
    said = point(page, LOADS, row, hottest - first, LAYERS, BLOCK)
    assert f"EP rank {hottest} \u00b7" in said
    page.go_back()
    expect(page.locator("main")).to_contain_text("All 256 EP ranks in blocks of 8. Click a block")


def test_from_rank_to_rank_by_largest_and_by_mean(fleet: Serving, watched: Watched) -> None:
    page = watched.open(fleet.url, "#/ranks")
    flows = np.array(fleet.get("/v1/view", start="-1m", parts="flows")["flows"])
    ratios = flows / flows.mean()
    size = RANKS // BLOCK
    blocks = ratios.reshape(size, BLOCK, size, BLOCK).swapaxes(1, 2)
    said = point(page, FLOWS, 0, 5, size, size)
    assert said.startswith("DP rank 0\u20137 \u00b7 EP rank 40\u201347 \u00b7 most: DP rank ")
    row, column = np.unravel_index(int(blocks[0, 5].argmax()), (BLOCK, BLOCK))
    assert f"DP rank {row} to EP rank {40 + column} " in said
    assert said.endswith(f"mean of the block: {blocks[0, 5].mean():.2f}{TIMES} a fair share")
    before = _colours(page)
    choice = page.get_by_label("A block's colour", exact=True).last
    choice.select_option("mean")
    page.wait_for_url(lambda url: "blocks=mean" in url)
    page.wait_for_function(
        "before => document.querySelectorAll('canvas.grid')[1].toDataURL() !== before", arg=before
    )
    canvas = page.get_by_role("application", name=FLOWS)
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "dp=0-7" in url and "ep=0-7" in url)
    expect(page.locator("main")).to_contain_text("DP ranks 0\u20137 of 256; EP ranks 0\u20137 of 256")
    assert point(page, FLOWS, 0, 3, BLOCK, BLOCK).startswith("DP rank 0 to EP rank 3 \u00b7")
    page.get_by_role("link", name="Show all ranks").last.click()
    page.wait_for_url(lambda url: "dp=" not in url and "ep=" not in url)


def _colours(page: Page) -> str:
    return str(page.evaluate("document.querySelectorAll('canvas.grid')[1].toDataURL()"))


def _at(page: Page, label: str, row: Any, column: Any, columns: int) -> Any:
    box = page.get_by_role("application", name=label).bounding_box()
    assert box is not None
    return {
        "x": 40 + (column + 0.5) * (box["width"] - 40) / columns,
        "y": 20 + (row + 0.5) * (box["height"] - 20) / LAYERS,
    }


def test_all_ranks_can_be_reached(fleet: Serving, watched: Watched) -> None:
    page = watched.open(fleet.url)
    page.get_by_role("button", name="Show all 256 EP ranks").click()
    rows = page.get_by_role("table", name=CAUSES).locator("tbody tr")
    expect(rows).to_have_count(RANKS)
    assert sorted(int(row[0]) for row in cells(page, CAUSES)) == list(range(RANKS))


def test_thousands_of_ep_ranks_come_in_pages(empty: Serving, clock: Clock, watched: Watched) -> None:
    counts = np.ones(THOUSANDS, dtype=np.int64)
    counts[4000] = 101
    for seq in (1, 2, 3):
        clock.now += 10
        sent = frame(
            {0: (seq * counts).tolist()},
            who=producer(ep_size=THOUSANDS),
            placement=halves(THOUSANDS, 1, THOUSANDS),
            epoch=int((clock.now - 10 * seq) * 1e9),
            seq=seq,
            after_s=10.0 * seq,
        )
        empty.push(sent)
    asked: list[str] = []
    watched.page.on("request", lambda request: asked.append(request.url))
    page = watched.open(empty.url)
    rows = page.get_by_role("table", name=CAUSES).locator("tbody tr")
    expect(rows.first.locator("th")).to_have_text("4000")
    trend = next(url for url in asked if "/v1/trend?" in url)
    shown = [int(row[0]) for row in cells(page, CAUSES)]
    assert sorted(map(int, parse_qs(urlsplit(trend).query)["ep_rank"])) == sorted(shown)
    line = page.get_by_role("img", name="Load of EP rank 4000 over time").locator("path").last
    expect(line).to_have_attribute("d", re.compile("M"))
    page.get_by_role("button", name="Show all 4,096 EP ranks").click()
    expect(rows).to_have_count(256)
    expect(page.get_by_text("1 to 256 of 4,096 EP ranks")).to_be_visible()
    seen = {row[0] for row in cells(page, CAUSES)}
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("257 to 512 of 4,096 EP ranks")).to_be_visible()
    assert seen.isdisjoint(row[0] for row in cells(page, CAUSES))
    clock.now += 1
    watched.route("#/ranks")
    expect(page.locator("main")).to_contain_text("All 4,096 EP ranks in blocks of 64")
    canvas = page.get_by_role("application", name=LOADS)
    canvas.click(position={"x": 40 + (62 + 0.5) * (_width(page) - 40) / 64, "y": 30})
    page.wait_for_url(lambda url: "ep=3968-4031" in url)
    assert "EP rank 4000 \u00b7 303 slots" in point(page, LOADS, 0, 32, 1, 64)


def _width(page: Page) -> float:
    box = page.get_by_role("application", name=LOADS).bounding_box()
    assert box is not None
    return box["width"]
