"""The boards' JSON: as the code makes it, and by the rules of Grafana's dashboard-linter, ported."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from moescope.dashboards.build import FOLDER, documents
from moescope.service.metrics.catalogue import CATALOGUE

BOARDS = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
UNITS = {"short", "percentunit", "s", "ops", "bytes", "Bps", "none"}
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: dict[str, Any]) -> list[str]:
    targets = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    return targets + [item["expr"] for item in board["annotations"]["list"]]


def variable(board: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [item for item in board["templating"]["list"] if item["name"] == name]
    return dict(found)


def test_the_json_is_what_the_code_makes() -> None:
    same = documents() == {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert same, "run: python -m moescope.dashboards.build"
    assert len(BOARDS) == 4


def not_kept(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where Grafana's models changed or lost something; defaults that they add are fine."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lost = [f"{path}/{key}" for key in ours if key not in theirs]
        both = [key for key in ours if key in theirs]
        return lost + [item for key in both for item in not_kept(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [item for i, (one, other) in pairs for item in not_kept(one, other, f"{path}/{i}")]
    return [] if ours == theirs else [path]


def through_grafanas_models(board: dict[str, Any]) -> dict[str, Any]:
    encoded: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(board)))
    return encoded


@each_board
def test_grafanas_models_know_all_that_is_in_the_json(board: dict[str, Any]) -> None:
    assert not not_kept(board, through_grafanas_models(board))


def test_grafanas_models_lose_what_they_do_not_know() -> None:
    board = json.loads(json.dumps(BOARDS["moescope-model.json"]))
    board["panels"][1]["fieldConfig"]["defaults"]["unitt"] = "short"
    lost = not_kept(board, through_grafanas_models(board))
    assert "/panels/1/fieldConfig/defaults/unitt" in lost


@each_board
def test_uneditable_dashboard(board: dict[str, Any]) -> None:
    assert board["editable"] is False
    assert board["uid"]
    assert board["description"]


@each_board
def test_template_datasource(board: dict[str, Any]) -> None:
    (source,) = [item for item in board["templating"]["list"] if item["type"] == "datasource"]
    assert (source["name"], source["label"], source["query"]) == ("datasource", "Data source", "prometheus")


@each_board
@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_and_instance(board: dict[str, Any], name: str) -> None:
    found = variable(board, name)
    assert found["label"] == name.capitalize()
    assert found["type"] == "query"
    assert found["multi"] is True
    assert found["includeAll"] is True
    assert found["allValue"] == ".+"


@each_board
def test_template_queries_labels_and_reload(board: dict[str, Any]) -> None:
    for item in board["templating"]["list"]:
        if item["type"] == "query":
            assert item["datasource"]["uid"] == "${datasource}"
            assert item["label"]
            assert item["refresh"] == 2  # when the time range changes
            metric = re.fullmatch(r"label_values\((moescope_\w+)(\{.*\})?, (\w+)\)", item["query"])
            assert metric is not None, item["query"]
            labels = {*CATALOGUE[metric[1]].labels, "cluster", "job", "instance"}
            assert metric[3] in labels


@each_board
def test_panels_have_a_source_title_description_unit_and_targets(board: dict[str, Any]) -> None:
    for panel in panels(board):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["targets"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


@each_board
def test_every_selector_names_job_and_instance(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        selectors = re.findall(r"moescope_\w+(\{[^}]*\})?", expr)
        assert selectors
        for selector in selectors:
            assert 'cluster=~"$cluster",job=~"$job",instance=~"$instance"' in selector, expr


@each_board
def test_counters_are_in_a_rate_over_the_rate_interval(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        for name in re.findall(r"(?<!rate\()(?<!increase\()(moescope_\w+_total)\b", expr):
            pytest.fail(f"{name} without rate or increase: {expr}")
        for interval in re.findall(r"\[([^\]]+)\]", expr):
            assert interval == "$__rate_interval", expr


@each_board
def test_metrics_and_labels_are_those_of_the_catalogue(board: dict[str, Any]) -> None:
    known = {name: family for family in CATALOGUE.values() for name in family.sample_names}
    for expr in expressions(board):
        for name, selector in re.findall(r"(moescope_\w+)\{([^}]*)\}", expr):
            labels = set(re.findall(r"(\w+)=~?\"", selector))
            assert labels <= {*known[name].labels, "cluster", "job", "instance"}, expr


@each_board
def test_variables_that_are_used_exist(board: dict[str, Any]) -> None:
    names = {item["name"] for item in board["templating"]["list"]}
    used = set(re.findall(r"\"\$(\w+)\"", " ".join(expressions(board))))
    assert used <= names


@each_board
def test_links_lead_to_boards_that_exist(board: dict[str, Any]) -> None:
    (link,) = board["links"]
    assert link["tags"] == ["moescope"]
    assert "moescope" in board["tags"]
    uids = {other["uid"] for other in BOARDS.values()}
    for panel in panels(board):
        for item in panel["fieldConfig"]["defaults"].get("links", []):
            assert item["url"].startswith("http://${__data.fields.instance}") or (
                item["url"].split("?")[0].removeprefix("/d/") in uids
            )


@each_board
def test_ids_are_unique_and_panels_do_not_overlap(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
