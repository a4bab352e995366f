"""The report of a window: it needs nothing else, its numbers are the API's, and no name becomes markup."""

from __future__ import annotations

import base64
import html
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from moescope.service.report.document import document
from moescope.service.report.facts import gather, parse_since
from moescope.service.report.heatmap import DIVERGING, deviation, png
from moescope.service.report.lines import Line, chart
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer


def push(service: Service, model: str = "tiny") -> None:
    """Push three frames of each of two DP ranks; EP rank 0 holds experts 0 and 1 of four."""
    for second in range(1, 4):
        for rank, tokens in ((0, 300), (1, 100)):
            who = producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2, model=model)
            counts = [tokens * second, tokens * second // 2, tokens * second // 2, 0]
            made = frame(
                {1: counts, 3: counts},
                seq=second,
                who=who,
                placement=halves(4, layers=2),
                after_s=90 + second,
            )
            assert service.push(made).status_code == 200
        service.clock.now += 5


def test_a_report_says_what_the_api_says(service: Service) -> None:
    push(service)
    page = document(gather(service.url, 3600, None, None))
    balance = service.get("/v1/balance", start="-1h")
    assert f"<dd>{balance['tokens']:,}</dd>" in page
    assert f"<dd>{balance['summary']['over_ep_ranks']['ratio_of_sums']:.2f}</dd>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Summary", "Balance over time", "Worst layers", "Experts", "DP ranks", "Advice",
    ]  # fmt: skip
    assert page.count("data:image/png;base64,") == 2
    assert "DP rank 1" in page
    advice = service.get("/v1/advice", start="-1h")
    assert html.escape(advice["verdict"]["words"]) in page
    assert all(item["name"] in page for item in advice["options"])


def test_a_report_says_which_layers_do_not_add_up(service: Service) -> None:
    push(service)
    assert "add up" not in document(gather(service.url, 3600, None, None))
    who = producer(dp_rank=0, dp_size=2, ep_size=2)
    counts = [2000, 1000, 1000, 0]
    lost = frame(
        {1: counts, 3: counts}, rows=[2000, 2000], tokens=2100, seq=4, who=who, placement=halves(4, 2)
    )
    assert service.push(lost).status_code == 200
    page = document(gather(service.url, 3600, None, None))
    assert "their counts don&#x27;t add up: 1, 3 (layer 1: its rows" in page


def test_a_report_needs_nothing_else(service: Service) -> None:
    push(service)
    page = document(gather(service.url, 3600, None, None))
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert "prefers-color-scheme:dark" in page


def test_names_are_no_markup(service: Service) -> None:
    push(service, model="<script>alert(1)</script>")
    page = document(gather(service.url, 3600, None, None))
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_the_command_writes_a_file_or_says_why_not(service: Service, tmp_path: Path) -> None:
    push(service)
    done = run("report", "--url", service.url, "--since", "10m", "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "tokens of tiny" in done.stdout
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    failed = run("report", "--url", service.url, "--since", "soon")
    assert failed.returncode == 2
    assert "give one such as 90s" in failed.stderr


@pytest.mark.parametrize(("given", "expected"), [("90s", 90), ("15m", 900), ("1.5h", 5400), ("-7d", 604800)])
def test_lengths(given: str, expected: float) -> None:
    assert parse_since(given) == expected


@pytest.mark.parametrize("bad", ["", "1", "h", "1s", "999d", "nan", "1h30m"])
def test_bad_lengths(bad: str) -> None:
    with pytest.raises(ValueError, match="no length of a window"):
        parse_since(bad)


def test_a_picture_has_the_cells_it_was_given() -> None:
    cells = np.array([[0, 255, 128], [1, 2, 3]], np.uint8)
    data = png(cells, DIVERGING["light"])
    at = data.index(b"IDAT") + 4
    size = int.from_bytes(data[at - 8 : at - 4], "big")
    rows = np.frombuffer(zlib.decompress(data[at : at + size]), np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(rows[:, 1:], cells)
    palette = data[data.index(b"PLTE") + 4 :][: 3 * 256]
    assert (palette[3:6].hex(), palette[-3:].hex()) == ("123f73", "7a3503")
    assert data[data.index(b"tRNS") - 4 :][:9] == b"\x00\x00\x00\x01tRNS\x00", "0 is transparent, no more"
    assert base64.b64encode(data).startswith(b"iVBOR")


def test_deviation_from_fair_share() -> None:
    np.testing.assert_allclose(deviation([0, 1, 7]), [0, 0.5 + np.log2(3 / 8) / 6, 0.5 + np.log2(21 / 8) / 6])
    assert np.isnan(deviation([0, 0])).all(), "idle is no sample, not fair"


def cells_of(page: str) -> list[list[int]]:
    """The palette indices of the page's picture in light."""
    [encoded] = re.findall(r'<img class=cells src="data:image/png;base64,(.*?)"', page)
    data = base64.b64decode(encoded)
    at = data.index(b"IDAT") + 4
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    rows = zlib.decompress(data[at : at + int.from_bytes(data[at - 8 : at - 4], "big")])
    return np.frombuffer(rows, np.uint8).reshape(height, width + 1)[:, 1:].tolist()


def test_layers_that_are_idle_or_not_seen_have_no_colour(service: Service) -> None:
    counts = {1: [10, 10, 10, 10], 2: [0, 0, 0, 0], 3: [20, 20]}
    assert service.push(frame(counts, rows=[20, 0, 20], tokens=20)).status_code == 200
    assert service.get("/v1/balance")["layers"][1]["over_experts"]["loads"] is None
    page = document(gather(service.url, 3600, None, None))
    assert cells_of(page) == [[128] * 4, [0] * 4, [128, 128, 0, 0]]


def test_a_window_of_a_month(service: Service) -> None:
    push(service)
    assert gather(service.url, parse_since("30d"), None, None).balance["tokens"] == 1200


def test_max_vio_is_max_vio(service: Service) -> None:
    push(service)
    page = document(gather(service.url, 3600, None, None))
    layers = service.get("/v1/balance", start="-1h")["layers"]
    worst = max(layer["over_experts"]["measures"]["max_vio"] for layer in layers)
    [(value, note)] = re.findall(r"<dt>MaxVio over experts</dt><dd>(.*?)</dd><p>(.*?)</p>", page)
    assert worst == 1.0
    assert value == f"{worst:.2f}", "both layers are alike"
    assert f"worst {worst:.2f} in layer 1" in note


def test_lines_have_gaps() -> None:
    drawn = chart([0, 10, 20, 30], [Line("a", [1, None, 2, 3])], "of a")
    [path] = re.findall(r'<path class="line c0" d="(.*?)"', drawn)
    assert path.count("M") == 2
    assert "No sample" in chart([0, 10], [Line("a", [None, None])], "of a")


def test_a_lone_sample_shows() -> None:
    drawn = chart([0, 10, 20], [Line("a", [None, 1, None])], "of a")
    [path] = re.findall(r'<path class="line c0" d="(.*?)"', drawn)
    assert path.endswith("h0"), "a move alone draws nothing"


def test_a_flat_line_has_a_scale() -> None:
    drawn = chart([0, 10], [Line("a", [1.0, 1.0])], "of a", floor=1.0)
    ticks = re.findall(r"text-anchor=end>(.*?)<", drawn)
    assert len(set(ticks)) == len(ticks) > 1
    assert "0e" not in "".join(ticks)
