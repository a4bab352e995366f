"""Routing traces on the page: what it lists and draws is what the API answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Shape
from tests.browser.chrome import Watched
from tests.browser.serving import Clock, Serving, feed, push_traces
from tests.service.trace_parts import part

PLAN = Plan(ranks=2, shape=Shape(layers=6, experts=64, top_k=4), tokens_per_s=1000.0, trace_rate=0.5)
HEADS = [
    "Request",
    "DP rank",
    "Tokens computed",
    "Prompt",
    "From cache",
    "Preempted",
    "Drafts accepted",
    "Took",
]
HEADS += ["Stored", "LoRA", "Ended"]
LEFT, TOP, ROW = 40, 20, 26  # of the grid, pixels


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A small fleet, 60 and more traces of its requests, and one with a cached prefix and a preemption."""
    clock = Clock()
    with Serving(clock, store=tmp_path_factory.mktemp("store")) as serving:
        fleet = feed(serving, clock, PLAN, seconds=20)
        push_traces(serving, *fleet.traces(20.0))
        who = {"server": PLAN.server, "model": PLAN.model}
        odd = {"runs": [(4, 12), (4, 26)], "cached_tokens": 4, "preemptions": 1, "prompt_tokens": 10}
        push_traces(
            serving, part(9000, 38, name="odd/one", who=who, **odd), part(9001, 30, name="other", who=who)
        )
        yield serving


def _rows(page: Page) -> list[list[str]]:
    rows = page.get_by_role("table", name="Traced requests").locator("tbody tr")
    return rows.evaluate_all("rows => rows.map(r => [...r.children].map(c => c.textContent))")


def _point(page: Page, label: str, row: int, column: int, columns: int) -> str:
    canvas = page.get_by_role("application", name=label)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x = LEFT + (column + 0.5) * (box["width"] - LEFT) / columns
    canvas.hover(position={"x": x, "y": TOP + (row + 0.5) * ROW})
    return canvas.locator("xpath=following-sibling::p[1]").inner_text()


def _brief(traces: list[dict[str, Any]]) -> list[list[str]]:
    numbers = ("dp_rank", "tokens", "prompt_tokens", "cached_tokens", "preemptions")
    return [[t["request_id"], *(f"{t[name]:,}" for name in numbers)] for t in traces]


def test_the_list_its_filters_and_its_pages_are_those_of_the_api(traced: Serving, watched: Watched) -> None:
    page = watched.open(traced.url, "#/traces")
    first = traced.get("/v1/traces", limit=50)
    expect(page.get_by_role("link", name="odd/one")).to_be_visible()
    assert [row[:6] for row in _rows(page)] == _brief(first["traces"])
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**cursor=*")
    second = traced.get("/v1/traces", limit=50, cursor=first["next_cursor"])["traces"]
    expect(page.get_by_role("link", name=second[0]["request_id"])).to_be_visible()
    assert [row[:6] for row in _rows(page)] == _brief(second)
    page.get_by_role("link", name="Newest").click()
    expect(page.get_by_role("link", name="odd/one")).to_be_visible()
    page.get_by_label("Took in layer").fill("3")
    page.get_by_label("Took in layer").press("Enter")
    expect(page.get_by_text("A hit needs both")).to_be_visible()
    expert = traced.get("/v1/traces/other")["routed_experts"][0][1][0]
    page.get_by_label("expert", exact=True).fill(str(expert))
    page.get_by_label("At least so many tokens").fill("35")
    page.get_by_label("At least so many tokens").press("Enter")
    page.get_by_label("Tokens of").select_option("0")
    page.wait_for_url("**dp_rank=0**")
    wanted = {"layer": 3, "expert": expert, "min_tokens": 35, "dp_rank": 0, "limit": 50}
    found = traced.get("/v1/traces", **wanted)["traces"]
    assert found
    expect(page.get_by_role("table", name="Traced requests").locator("tbody tr")).to_have_count(len(found))
    assert [row[:6] for row in _rows(page)] == _brief(found)
    assert watched.axe() == []


def test_how_requests_ended_their_adapters_and_drafts(
    clock: Clock, new_page: Callable[..., Watched], tmp_path: Path
) -> None:
    """What no listed trace has, such as an adapter, takes no column."""
    with Serving(clock, store=tmp_path) as serving:
        feed(serving, clock, PLAN, seconds=10)
        who = {"server": PLAN.server, "model": PLAN.model}
        told = {"lora": "poems", "finish_reason": "length", "accepted_drafts": 1200, "rejected_drafts": 34}
        push_traces(
            serving, part(1, 30, name="plain", who=who), part(2, 30, name="cut", who=who, outcome="cut_off")
        )
        watched = new_page()
        page = watched.open(serving.url, "#/traces")
        table = page.get_by_role("table", name="Traced requests")
        expect(table.get_by_role("columnheader")).to_have_text([*HEADS[:6], "Took", "Stored"])
        expect(table.get_by_role("cell", name="cut off")).to_be_visible()
        push_traces(serving, part(3, 30, name="poem", who=who, **told))
        page.reload()
        expect(table.get_by_role("columnheader")).to_have_text(HEADS)
        [poem, cut, plain] = _rows(page)
        assert [poem[6], *poem[9:]] == ["1,200 of 1,234", "poems", "length", ""]
        assert [cut[6], *cut[9:]] == ["", "", "", "cut off"]
        assert [plain[6], *plain[9:]] == ["", "", "", ""]
        assert watched.axe() == []
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("link", name="poem").click()
        for words in ("it has as many tokens as it may", "1,200 of 1,234", "poems"):
            expect(page.get_by_text(words, exact=True)).to_be_visible()
        assert watched.axe() == []
        page.goto("about:blank")


def test_one_trace_shows_its_experts_and_what_was_not_computed(traced: Serving, watched: Watched) -> None:
    page = watched.open(traced.url, "#/traces?request=odd/one")
    page.get_by_role("link", name="odd/one").click()
    expect(page.get_by_role("heading", name="Trace odd/one")).to_be_visible()
    trace = traced.get("/v1/traces/odd/one")
    columns, label = len(trace["times_computed"]), "Experts by layer and position"
    assert columns == 30
    assert _point(page, label, 1, 2, columns) == (
        "layer 3 \N{MIDDLE DOT} position 2 (prompt) \N{MIDDLE DOT} not computed: a prefix cache had it"
    )
    for position, words in ((6, "computed 2 times"), (20, "(output)")):
        text = _point(page, label, 1, position, columns)
        assert ", ".join(map(str, trace["routed_experts"][position][1])) in text
        assert words in text
    page.get_by_role("application", name=label).click(position={"x": 300, "y": TOP + 1.5 * ROW})
    page.wait_for_url("**layer=3*")
    expect(page.get_by_text("layer 3: ")).to_be_visible()
    taken = np.bincount(np.array([row[1] for row in trace["routed_experts"][4:]]).ravel())
    text = _point(page, "Experts of one layer", 0, 20, columns)
    assert text.endswith(f"{taken.max()} slots in these positions")
    grid = page.get_by_role("application", name=label)
    grid.focus()
    for key in ("ArrowDown", "ArrowDown", "End"):
        page.keyboard.press(key)
    readout = grid.locator("xpath=following-sibling::p[1]")
    last = ", ".join(map(str, trace["routed_experts"][-1][1]))
    expect(readout).to_have_text(f"layer 3 \N{MIDDLE DOT} position 29 (output) \N{MIDDLE DOT} experts {last}")
    assert watched.axe() == []


def test_a_trace_can_be_downloaded_in_every_format(traced: Serving, watched: Watched, tmp_path: Path) -> None:
    page = watched.open(traced.url, "#/trace?trace=odd/one")
    for suffix in ("npz", "parquet", "json", "raw"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=suffix, exact=True).click()
        path = tmp_path / f"t.{suffix}"
        waiting.value.save_as(path)
        assert path.read_bytes() == httpx.get(f"{traced.url}/v1/traces/odd/one.{suffix}", timeout=60).content
    expected = traced.get("/v1/traces/odd/one")["routed_experts"]
    assert np.load(tmp_path / "t.npz")["routed_experts"].tolist() == expected


def test_two_traces_are_compared_position_by_position(traced: Serving, watched: Watched) -> None:
    page = watched.open(traced.url, "#/trace?trace=odd/one")
    other_id = traced.get("/v1/traces/other")["request_id"]
    page.get_by_label("Compare with").select_option(other_id)
    one, other = (
        np.array(traced.get(f"/v1/traces/{name}")["routed_experts"]) for name in ("odd/one", "other")
    )
    same = [len(set(one[at, 1]) & set(other[at, 1])) for at in range(4, 30)]
    row = page.get_by_role("table", name="Experts in common").locator("tbody tr").filter(has_text="6.25 %")
    assert f"{100 * sum(same) / (4 * len(same)):.2f} %" in row.inner_text()
    text = _point(page, "Experts in common with the other trace", 1, 9, 30)
    assert f"{same[5]} of 4 in common" in text
    assert watched.axe() == []
    page.set_viewport_size({"width": 390, "height": 800})
    for route in ("#/traces", f"#/trace?trace=odd/one&against={other_id}"):
        watched.route(route)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_traces_are_accessible_in_the_dark(traced: Serving, new_page: Callable[..., Watched]) -> None:
    watched = new_page(color_scheme="dark")
    other_id = traced.get("/v1/traces/other")["request_id"]
    for route in ("#/traces", "#/trace?trace=odd/one", f"#/trace?trace=odd/one&against={other_id}"):
        page = watched.open(traced.url, route)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 23)"
        assert watched.axe() == [], route


def test_long_traces_are_shown_a_span_at_a_time(traced: Serving, watched: Watched) -> None:
    long = max(traced.get("/v1/traces", limit=1000)["traces"], key=lambda t: t["tokens"])
    assert long["tokens"] > 256
    experts = traced.get(f"/v1/traces/{long['request_id']}")["routed_experts"]
    page = watched.open(traced.url, f"#/trace?trace={long['request_id']}")
    page.get_by_role("link", name="later positions").click()
    page.wait_for_url("**at=256*")
    expect(page.get_by_text("positions 256 to")).to_be_visible()
    columns = min(256, len(experts) - 256)
    text = _point(page, "Experts by layer and position", 2, columns - 1, columns)
    assert text.endswith(f"experts {', '.join(map(str, experts[255 + columns][2]))}")


def test_beyond_the_end_of_a_trace_the_keyboard_finds_nothing(traced: Serving, watched: Watched) -> None:
    long = max(traced.get("/v1/traces", limit=1000)["traces"], key=lambda t: t["tokens"])
    page = watched.open(traced.url, f"#/trace?trace={long['request_id']}&at=100000")
    expect(page.get_by_text("no position was computed here")).to_be_visible()
    page.get_by_role("application", name="Experts by layer and position").press("ArrowDown")


def test_without_a_store_the_view_says_how_to_turn_traces_on(
    empty: Serving, clock: Clock, watched: Watched
) -> None:
    watched.expected = ["404"]
    feed(empty, clock, PLAN, seconds=10)
    page = watched.open(empty.url, "#/traces")
    message = page.locator("[data-state=traces-off]")
    expect(message).to_contain_text("moescope serve --store FOLDER")
    expect(message).to_contain_text("Handle traces like prompts")
    assert watched.axe() == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_no_trace_yet_and_none_that_fits(
    clock: Clock, new_page: Callable[..., Watched], tmp_path: Path
) -> None:
    with Serving(clock, store=tmp_path) as serving:
        fleet = feed(serving, clock, PLAN, seconds=10)
        watched = new_page()
        watched.expected = ["404"]
        page = watched.open(serving.url, "#/traces?min_tokens=100000")
        expect(page.locator("[data-state=traces-none]")).to_contain_text("MOESCOPE_TRACE_RATE")
        push_traces(serving, *list(fleet.traces(10.0))[:3])
        page.reload()
        expect(page.get_by_text("No traced request in this window fits")).to_be_visible()
        page.get_by_role("button", name="Clear the filters").click()
        expect(page.get_by_role("table", name="Traced requests").locator("tbody tr")).to_have_count(3)
        watched.route("#/trace?trace=nobody")
        expect(page.get_by_role("heading", name="No such trace")).to_be_visible()
        assert watched.axe() == []
        page.goto("about:blank")
