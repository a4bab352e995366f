"""All 17 rules of Grafana's dashboard-linter hold for each board; a board that breaks one is found by it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.dashboards.boards import BOARDS
from tests.dashboards.linter import RULES, Board, panels
from tests.dashboards.promql import selectors

Break = Callable[[Board], object]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", BOARDS)
def test_boards_keep_the_rules(name: str, rule: str) -> None:
    assert not RULES[rule](BOARDS[name])


def variable(board: Board, name: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [item for item in board["templating"]["list"] if item["name"] == name]
    return found


def replace_expr(old: str, new: str) -> Break:
    """In the first target that has the old text."""

    def change(board: Board) -> None:
        targets = [target for panel in panels(board) for target in panel["targets"] if old in target["expr"]]
        targets[0]["expr"] = targets[0]["expr"].replace(old, new)

    return change


def change_panel(key: str, value: object) -> Break:
    return lambda board: panels(board)[0].update({key: value})


BREAKS: dict[str, list[Break]] = {
    "template-datasource-rule": [
        lambda board: variable(board, "datasource").update(label="Source"),
        lambda board: board["templating"]["list"].remove(variable(board, "datasource")),
    ],
    "template-job-rule": [
        lambda board: variable(board, "job").update(multi=False),
        lambda board: variable(board, "job").update(allValue=".*"),
        lambda board: variable(board, "job").update(datasource={"type": "prometheus", "uid": "mine"}),
    ],
    "template-instance-rule": [lambda board: variable(board, "instance").update(label="Host")],
    "template-label-promql-rule": [
        lambda board: variable(board, "job").update(query="label_valuez(moescope_build_info, job)"),
        lambda board: variable(board, "job").update(query="label_values(moescope_build_info{, job)"),
    ],
    "template-on-time-change-reload-rule": [lambda board: variable(board, "job").update(refresh=1)],
    "panel-datasource-rule": [
        change_panel("datasource", {"type": "prometheus", "uid": "mine"}),
        lambda board: panels(board)[0]["targets"][0].pop("datasource"),
    ],
    "panel-title-description-rule": [change_panel("title", ""), change_panel("description", "")],
    "panel-units-rule": [
        lambda board: panels(board)[0]["fieldConfig"]["defaults"].pop("unit"),
        lambda board: panels(board)[0]["fieldConfig"]["defaults"].update(unit="tokens"),
    ],
    "panel-no-targets-rule": [change_panel("targets", [])],
    "target-logql-rule": [lambda board: panels(board)[0]["targets"][0]["datasource"].update(type="loki")],
    "target-logql-auto-rule": [lambda board: variable(board, "datasource").update(query="loki")],
    "target-promql-rule": [replace_expr("sum", "sun"), replace_expr(")", "")],
    "target-rate-interval-rule": [replace_expr("$__rate_interval", "5m")],
    "target-job-rule": [replace_expr('job=~"$job"', 'job="$job"'), lambda board: ask(board, "up")],
    "target-instance-rule": [replace_expr('instance=~"$instance"', 'instance=~"a"')],
    "target-counter-agg-rule": [lambda board: ask(board, "sum(moescope_tokens_total)")],
    "uneditable-dashboard": [lambda board: board.update(editable=True)],
}


def ask(board: Board, expr: str) -> None:
    panels(board)[0]["targets"][0]["expr"] = expr


@pytest.mark.parametrize("rule", RULES)
def test_a_board_that_breaks_a_rule_is_found(rule: str) -> None:
    for change in BREAKS[rule]:
        board = copy.deepcopy(BOARDS["moescope-model.json"])
        change(board)
        assert RULES[rule](board)


def test_selectors_are_all_that_asks_for_series() -> None:
    expr = (
        'sum by (a, b) (rate(x_total{j=~"$j{"}[5m])) / on (a) group_left () (up > 1e3 or {c="d"} offset 5m)'
    )
    assert selectors(expr) == [("x_total", '{j=~"$j{"}', "[5m]"), ("up", "", ""), ("", '{c="d"}', "")]
