"""What the pictures of boards ask of Prometheus; drawing them needs npm's packages and is done by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from devkit.board_pictures.data import BOARDS, View, answered, without_data

PATHS = sorted(BOARDS.glob("*.json"))
DRAW = (BOARDS.parents[1] / "devkit" / "board_pictures" / "draw.jsx").read_text()
VIEW = View(1000.0, 1360.0, 5, {"server": "chat", "layer": "8"})


def test_chosen_variables_are_filled_in_and_the_others_match_everything() -> None:
    text = 'rate(x_total{server=~"$server",job=~"$job",layer=~"$layer"}[$__rate_interval])'
    assert VIEW.fill(text) == 'rate(x_total{server=~"chat",job=~".*",layer=~"8"}[20s])'
    assert VIEW.fill("Balance of layer $layer, $other") == "Balance of layer 8, $other"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_query_of_a_board_is_asked_without_variables_and_answered(path: Path) -> None:
    asked: list[httpx.Request] = []

    def prometheus(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = [{"metric": {"a": "b"}, "value": [1360, "1"]}]
        if request.url.path.endswith("range"):
            found = [{"metric": {"a": "b"}, "values": [[1000, "1"], [1005, "2"]]}]
        return httpx.Response(200, json={"data": {"result": found}})

    name = path.stem.removeprefix("moescope-")
    with httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(prometheus)) as client:
        answers = answered(client, name, VIEW)
    assert asked
    assert not [request.url for request in asked if "$" in request.url.params["query"]]
    assert {request.url.params.get("step", "5") for request in asked} == {"5"}
    assert not without_data(answers)
    panel = next(panel for panel in answers["board"]["panels"] if panel["type"] != "row")
    panel["targets"][0]["result"] = []
    assert without_data(answers) == [panel["title"]]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_cannot_be_drawn_is_as_wide_as_the_board(path: Path) -> None:
    """So that draw.jsx may make it low and move up what is below it."""
    drawn = {"row", *re.findall(r"(\w+): (?:Stat|Lines|Cells)", DRAW)}
    assert {"stat", "timeseries", "table"} < drawn
    for panel in json.loads(path.read_text())["panels"]:
        assert panel["type"] in drawn or panel["gridPos"]["w"] == 24
