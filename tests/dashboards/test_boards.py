"""The boards' JSON: as the code makes it, with metrics, variables and links that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from moescope.dashboards import spec
from moescope.dashboards.boards_model_now import CAUSED, COUNTED
from moescope.dashboards.build import FOLDER, documents
from moescope.service.metrics.catalogue import CATALOGUE
from tests.dashboards.boards import BOARDS
from tests.dashboards.linter import expressions, panels
from tests.dashboards.promql import selectors
from tests.dashboards.promtool import OF, check
from tests.service.metrics.families import FAMILY_OF

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def test_the_json_is_what_the_code_makes() -> None:
    same = documents() == {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert same, "run: python -m moescope.dashboards.build"
    assert len(BOARDS) == 5


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
def test_boards_are_known_by_a_uid_and_described(board: dict[str, Any]) -> None:
    assert board["uid"]
    assert board["description"]


@each_board
def test_variables_are_labels_of_the_catalogue_and_named(board: dict[str, Any]) -> None:
    for item in board["templating"]["list"]:
        if item["type"] == "query":
            assert item["label"]
            metric = re.fullmatch(r"label_values\((moescope_\w+)(\{.*\})?, (\w+)\)", item["query"])
            assert metric is not None, item["query"]
            assert metric[3] in {*CATALOGUE[metric[1]].possible_labels, "cluster", "job", "instance"}


@each_board
def test_every_selector_chooses_a_cluster(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        assert all('cluster=~"$cluster"' in matchers for _, matchers, _ in selectors(expr)), expr


@each_board
def test_metrics_and_labels_are_those_of_the_catalogue(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        for name, selector in re.findall(r"(moescope_\w+)\{([^}]*)\}", expr):
            labels = set(re.findall(r"(\w+)=~?\"", selector))
            assert labels <= {*FAMILY_OF[name].possible_labels, "cluster", "job", "instance"}, expr


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
def test_links_to_boards_of_a_deployment_choose_all_that_tells_it_apart(board: dict[str, Any]) -> None:
    for panel in panels(board):
        for item in panel["fieldConfig"]["defaults"].get("links", []):
            uid, _, chosen = item["url"].removeprefix("/d/").partition("?")
            if item["url"].startswith("http"):
                continue
            target = next(other for other in BOARDS.values() if other["uid"] == uid)
            given = {a or b for a, b in re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", chosen)}
            if "${__all_variables}" in chosen:
                given |= {variable["name"] for variable in board["templating"]["list"]}
            wanted = {variable["name"] for variable in target["templating"]["list"]}
            assert wanted - {"rank"} <= given, item["url"]


@each_board
def test_of_coloured_tables_only_the_values_are_coloured(board: dict[str, Any]) -> None:
    for panel in panels(board):
        if "cellOptions" in panel["fieldConfig"]["defaults"].get("custom", {}):
            (override,) = panel["fieldConfig"]["overrides"]
            assert override["matcher"] in (
                {"id": "byType", "options": "string"},
                {"id": "byName", "options": "layer\\ep_rank"},
                {"id": "byName", "options": "layer\\expert"},
            )
            assert override["properties"] == [{"id": "custom.cellOptions", "value": {"type": "auto"}}]


def test_matrices_are_in_the_order_of_numbers() -> None:
    """By the columns first and then, as sorting is stable, by the rows; labels are text."""
    matrices = [
        [step["id"] for step in panel["transformations"]]
        for board in BOARDS.values()
        for panel in panels(board)
        if panel.get("transformations", [{"id": ""}])[-1]["id"] == "groupingToMatrix"
    ]
    assert matrices == [["convertFieldType", "sortBy", "sortBy", "groupingToMatrix"]] * 2


def test_boards_that_add_up_over_ep_ranks_show_one_deployment() -> None:
    """A's hot EP rank 0 and B's hot EP rank 1 would look balanced."""
    many = {
        name: {item["name"] for item in board["templating"]["list"] if item.get("multi")}
        for name, board in BOARDS.items()
    }
    assert not {"server", "model"} & (many["moescope-model.json"] | many["moescope-layer.json"])
    assert {"cluster", "job", "instance"} <= many["moescope-model.json"]


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


def test_a_matrix_has_the_least_even_layers_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for 20 cells, as promtool takes no 2,000 series."""
    monkeypatch.setattr(spec, "CELLS", 20)
    cases = []
    for layers, ranks, kept in ((6, 8, 2), (2, 8, 2), (2, 21, 1)):
        series = {
            f'moescope_slots_total{OF},layer="{layer}",ep_rank="{rank}"}}': "0+"
            + (f"{100 + layer}x10" if rank == 0 else "100x10")
            for layer in range(layers)
            for rank in range(ranks)
        }
        query = spec.least_even("moescope_slots_total", 'server="s"', "layer", "ep_rank")
        query = query.replace("$__rate_interval", "5m")
        rows = {f'{{layer="{layer}"}}': ranks for layer in range(layers - kept, layers)}
        cases.append({"series": series, "at": "10m", "expect": {f"count by (layer) ({query})": rows}})
    check(tmp_path, cases)
    monkeypatch.undo()
    matrices = [panel for panel in panels(BOARDS["moescope-model.json"]) if "Layer x " in panel["title"]]
    assert all("floor(2000 / count(" in panel["targets"][0]["expr"] for panel in matrices)
    assert len(matrices) == 2


def test_multiples_of_a_fair_share_are_coloured_by_a_scale_centred_on_one() -> None:
    panels_of_model = {panel["title"]: panel for panel in panels(BOARDS["moescope-model.json"])}
    for title in ("Layer x EP rank", "Layer x expert"):
        defaults = panels_of_model[title]["fieldConfig"]["defaults"]
        assert (defaults["min"] + defaults["max"]) / 2 == 1
        assert defaults["color"]["mode"] == "continuous-BlYlRd"
    for title in ("Slots by EP rank, times fair share", "Imbalance ratio by layer"):
        colour = panels_of_model[title]["options"]["color"]
        assert (colour["min"] + colour["max"]) / 2 == 1


@each_board
def test_no_panel_has_a_number_for_each_rank(board: dict[str, Any]) -> None:
    for panel in panels(board):
        if panel["type"] == "stat":
            for target in panel["targets"]:
                assert not re.match(r"(max|sum|min) by \([^)]*(dp|ep)_rank", target["expr"]), panel["title"]


def test_who_causes_the_waiting_is_from_single_steps_or_says_that_it_is_by_sums(tmp_path: Path) -> None:
    def filled(expr: str) -> str:
        return re.sub(r'=~"\$\w+"', '=~".*"', expr).replace("$__rate_interval", "5m")

    by_sums = {
        f'moescope_layer_ep_rank_slots_total{OF},layer="1",ep_rank="{rank}"}}': f"0+{slots}x20"
        for rank, slots in enumerate((900, 100, 200))
    }
    by_steps = {
        f'moescope_straggler_caused_slots_total{OF},ep_rank="{rank}"}}': f"0+{slots}x20"
        for rank, slots in enumerate((100, 0, 300))
    }
    ranks = [f'{{ep_rank="{rank}"}}' for rank in range(3)]
    exact = {filled(CAUSED): dict(zip(ranks, (0.25, 0, 0.75), strict=True))}
    exact[filled(COUNTED)] = dict.fromkeys(ranks, 1)
    sums = {filled(CAUSED): {ranks[0]: 1}, filled(COUNTED): {ranks[0]: 0}}
    check(
        tmp_path,
        [
            {"series": by_sums | by_steps, "at": "15m", "expect": exact},
            {"series": by_sums, "at": "15m", "expect": sums},
        ],
    )
