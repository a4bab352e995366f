"""What the page shows equals what the API answers, for a large simulated fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from moescope.service.measures.balance import MEASURES
from tests.browser.chrome import Watched
from tests.browser.reading import MINUS, TIMES, TO, cells, compact, point, tile
from tests.browser.serving import EPOCH, Serving

WINDOW = {"start": "-1m"}
TABLE = "Divergence of each layer"


def test_overview(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url)
    balance = large.get("/v1/balance", **WINDOW)
    summary = balance["summary"]["over_ep_ranks"]
    assert tile(page, "Imbalance over EP ranks") == f"{summary['ratio_of_sums']:.2f}{TIMES}"
    assert tile(page, "Worst layer") == str(summary["worst_layer"])
    dead = sum(layer["over_experts"]["measures"]["dead"] for layer in balance["layers"])
    assert tile(page, "Dead experts") == f"{dead:,}"
    assert tile(page, "Tokens per second") == compact(balance["tokens"] / 60)
    assert f"{balance['tokens']:,} tokens in 60 s" in page.locator(".tiles").inner_text()

    loads = [layer["over_ep_ranks"]["loads"] for layer in balance["layers"]]
    by_rank = [sum(load[rank] for load in loads) for rank in range(32)]
    fair = sum(by_rank) / 32
    page.get_by_role("button", name="Show all 32 EP ranks").click()
    shown = {row[0]: row[4] for row in cells(page, "Who causes the waiting, by EP rank")}
    assert shown == {str(rank): f"{load / fair:.2f}{TIMES}" for rank, load in enumerate(by_rank)}
    page.get_by_role("button", name="Show all 32 DP ranks").click()
    tokens = sorted(enumerate(balance["dp_tokens"]["loads"]), key=lambda item: -item[1])
    assert cells(page, "Tokens per second of each DP rank") == [
        [str(rank), "", compact(value / 60), "live"] for rank, value in tokens
    ]
    ratio = {
        layer["layer"]: layer["over_ep_ranks"]["measures"]["imbalance_ratio"] for layer in balance["layers"]
    }
    worst = sorted(ratio, key=lambda layer: -ratio[layer])[:8]
    shown = page.locator("section", has=page.get_by_role("heading", name="Worst layers")).locator("tbody tr")
    assert [row.locator("th").inner_text() for row in shown.all()] == [f"layer {layer}" for layer in worst]
    assert shown.first.locator("td").first.inner_text() == f"{ratio[worst[0]]:.3f}"
    assert "Layer 60 can't be seen: simulated" in page.locator(".health").inner_text()


def _readout(histogram: dict[str, Any], row: int, expert: int) -> list[str]:
    layer = histogram["layers"][row]
    share = layer["shares"][expert]
    return [
        f"layer {layer['layer']}",
        f"expert {expert}",
        f"EP rank {expert // 8}",
        f"{layer['counts'][expert]:,} slots",
        f"{100 * share:.2f} % of the layer's",
        f"{share * 256:.2f}{TIMES} a fair share",
    ]


def test_every_cell_of_the_heatmap_has_its_number(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/heatmap?sort=id&group=none")
    histogram = large.get("/v1/histogram", **WINDOW)
    assert len(histogram["layers"]) == 57
    for row, expert in ((0, 0), (0, 255), (20, 131), (56, 8), (56, 255)):
        words = point(page, "Experts by layer", row, expert, 57, 256).split(" · ")
        assert words[:6] == _readout(histogram, row, expert)
    dead = [(r, layer["counts"].index(0)) for r, layer in enumerate(histogram["layers"])]
    assert point(page, "Experts by layer", *dead[3], 57, 256).endswith(" · dead")
    hot = [
        (r, max(range(256), key=layer["counts"].__getitem__)) for r, layer in enumerate(histogram["layers"])
    ]
    assert point(page, "Experts by layer", *hot[9], 57, 256).endswith(" · hot")
    none = sum(layer["counts"].count(0) for layer in histogram["layers"])
    assert f"{none:,} of {57 * 256:,}" in page.get_by_text("layer 3:", exact=False).inner_text()


def test_the_heatmap_of_one_rank_by_load_grouped(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/heatmap?dp_rank=3&scale=share&window=10s")
    histogram = large.get("/v1/histogram", start="-10s", dp_rank=3)
    row, rank = 12, 5
    counts = histogram["layers"][row]["counts"]
    order = sorted(range(8 * rank, 8 * rank + 8), key=lambda expert: (-counts[expert], expert))
    for place, expert in enumerate(order):
        words = point(page, "Experts by layer", row, 8 * rank + place, 57, 256).split(" · ")
        assert words[:6] == _readout(histogram, row, expert)


def test_a_past_window(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/heatmap?sort=id&group=none&from=1700000020&to=1700000050")
    histogram = large.get("/v1/histogram", start=1700000020, end=1700000050)
    assert point(page, "Experts by layer", 7, 77, 57, 256).split(" · ")[:6] == _readout(histogram, 7, 77)
    assert f"{histogram['tokens']:,} tokens" in page.locator("main").inner_text()
    expect(page.locator("#status")).to_have_text("Past window")


def test_ranks(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/ranks?layer=14")
    [layer] = large.get("/v1/balance", layer=14, **WINDOW)["layers"]
    loads = layer["over_ep_ranks"]["loads"]
    fair = sum(loads) / 32
    page.get_by_role("button", name="Show all 32 EP ranks").last.click()
    assert cells(page, "Slots of each EP rank") == [
        [str(r), "", compact(load), f"{load / fair:.2f}{TIMES}", f"{8 * r}{TO}{8 * r + 7}"]
        for r, load in sorted(enumerate(loads), key=lambda item: -item[1])
    ]
    words = point(page, "EP ranks by layer", 14 - 3, 9, 57, 32)
    assert words.startswith(f"layer 14 · EP rank 9 · {loads[9]:,.0f} slots · {loads[9] / fair:.2f}{TIMES}")
    assert f"{layer['over_ep_ranks']['measures']['imbalance_ratio']:.3f}" in words

    [counted] = large.get("/v1/histogram", layer=14, dp_rank=2, **WINDOW)["layers"]
    sent = sum(counted["counts"][8 * 9 : 8 * 10])
    words = point(page, "From DP rank to EP rank", 2, 9, 32, 32)
    assert words.startswith(
        f"DP rank 2 to EP rank 9 · {sent:,} slots · {100 * sent / counted['slots']:.2f} %"
    )


def test_a_layer(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/layer?layer=30&sort=load")
    [layer] = large.get("/v1/balance", layer=30, **WINDOW)["layers"]
    [counted] = large.get("/v1/histogram", layer=30, **WINDOW)["layers"]
    experts, ranks = layer["over_experts"]["measures"], layer["over_ep_ranks"]["measures"]
    assert tile(page, "Tokens") == f"{layer['tokens']:,}"
    assert tile(page, "Imbalance ratio over EP ranks") == f"{ranks['imbalance_ratio']:.3f}"
    assert tile(page, "MaxVio over experts") == f"{experts['max_vio']:.3f}"
    assert tile(page, "Normalised entropy") == f"{experts['normalised_entropy']:.3f}"
    assert tile(page, "Dead experts") == str(experts["dead"])
    shown = {row[0]: row[1:3] for row in cells(page, "Measures of this layer")}
    assert shown == {
        measure.title: [
            str(values[name]) if measure.whole else f"{values[name]:.3f}" for values in (ranks, experts)
        ]
        for name, measure in MEASURES.items()
    }
    order = sorted(range(256), key=lambda expert: (-counted["counts"][expert], expert))
    assert [row[0] for row in cells(page, "Experts with the most slots")] == [str(e) for e in order[:10]]
    columns = page.locator(".histogram i")
    texts = columns.evaluate_all("all => all.map(i => i.dataset.text)")
    assert [text.split(" · ")[0] for text in texts] == [f"expert {expert}" for expert in order]
    assert [text.split(" · ")[2] for text in texts] == [f"{counted['counts'][e]:,} slots" for e in order]


def test_compare(large: Serving, watched: Watched) -> None:
    page = watched.open(large.url, "#/compare")
    window = {"start": "-60s", "base_start": "-120s", "base_end": "-60s"}
    layers = large.get("/v1/compare", **window)["layers"]
    order = sorted(layers, key=lambda layer: -layer["divergence"])
    assert cells(page, "Divergence of each layer") == [
        [str(layer["layer"]), "", f"{layer['divergence']:.4f}"] for layer in order
    ]
    now, before = (
        large.get("/v1/histogram", layer=9, **bounds)["layers"][0]["shares"]
        for bounds in ({"start": "-60s"}, {"start": "-120s", "end": "-60s"})
    )
    change = now[200] - before[200]
    words = point(page, "Difference of shares", 9 - 3, 200, 57, 256)
    sign = MINUS if change < 0 else "+"
    assert words.startswith(f"layer 9 · expert 200 · {sign}{100 * abs(change):.3f} % of the layer's slots")


def _shows(page: Page, answer: dict[str, Any]) -> None:
    order = sorted(answer["layers"], key=lambda layer: -layer["divergence"])
    expected = [[str(layer["layer"]), "", f"{layer['divergence']:.4f}"] for layer in order]
    first = page.get_by_role("table", name=TABLE).locator("tbody tr").first.locator("td").last
    expect(first).to_have_text(expected[0][2])
    assert cells(page, TABLE) == expected


def test_two_free_windows(large: Serving, new_page: Callable[..., Watched]) -> None:
    watched = new_page(timezone_id="UTC")
    route = f"#/compare?from={EPOCH + 80}&to={EPOCH + 110}"
    page = watched.open(large.url, route)
    page.get_by_label("in", exact=True).select_option("window")
    page.wait_for_url(f"**base_from={EPOCH + 50}&base_to={EPOCH + 80}**")
    page.get_by_label("Base from", exact=True).fill("2023-11-14T22:13:30")
    page.get_by_label("Base from", exact=True).blur()
    page.wait_for_url(f"**base_from={EPOCH + 10}&**")
    window = {"start": EPOCH + 80, "end": EPOCH + 110, "base_start": EPOCH + 10, "base_end": EPOCH + 80}
    _shows(page, large.get("/v1/compare", **window))

    watched.expected = ["400"]
    page.get_by_label("Base to", exact=True).fill("2023-11-14T22:13:25")
    page.get_by_label("Base to", exact=True).blur()
    expect(page.get_by_text("The window ends before it begins", exact=False)).to_be_visible()
    page.get_by_label("in", exact=True).select_option("all")
    expect(page.get_by_role("table", name=TABLE)).to_be_visible()
    assert "base_from" not in page.url


def test_two_phases_in_two_windows(large: Serving, watched: Watched) -> None:
    base = f"base=window&base_from={EPOCH + 10}&base_to={EPOCH + 60}"
    page = watched.open(large.url, f"#/compare?window=10s&phase=prefill&{base}")
    page.get_by_label("Base's tokens", exact=True).select_option("decode")
    page.wait_for_url("**base_phase=decode**")
    window = {"start": "-10s", "base_start": EPOCH + 10, "base_end": EPOCH + 60}
    answer = large.get("/v1/compare", phase="prefill", base_phase="decode", **window)
    _shows(page, answer)
    expect(page.locator("main")).to_contain_text(f"{answer['side']['tokens']:,} tokens of prefill")
    expect(page.locator("main")).to_contain_text(f"{answer['base']['tokens']:,} tokens of decode")
    assert watched.axe() == []
