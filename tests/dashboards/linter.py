"""The rules of Grafana's dashboard-linter, ported: each takes a board's JSON and returns its complaints.

Stricter than the linter in two things: rules of panels hold for all kinds of panels (the linter leaves out
heatmaps), rules of targets for the queries of annotations too. The series ALERTS needs no job and no
instance: an alert is about a deployment, whichever services count for it. The linter is written in Go and was
not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.dashboards.promql import selectors, unparsable

Board = dict[str, Any]
Rule = Callable[[Board], list[str]]
SOURCE = "${datasource}"
# Of the linter's list: those that the boards use.
UNITS = {"short", "percentunit", "s", "ops", "bytes", "Bps", "none"}
FUNCTIONS = ("label_names", "label_values", "metrics", "query_result")


def panels(board: Board) -> list[dict[str, Any]]:
    """All but rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: Board) -> list[str]:
    """All PromQL of panels and annotations."""
    targets = [target["expr"] for panel in panels(board) for target in panel.get("targets", [])]
    return targets + [item["expr"] for item in board["annotations"]["list"]]


def _variables(board: Board, kind: str) -> list[dict[str, Any]]:
    return [item for item in board["templating"]["list"] if item["type"] == kind]


def template_datasource(board: Board) -> list[str]:
    """One variable for the data source, by the name and label that Grafana's own boards have."""
    found = [(item["name"], item["label"], item["query"]) for item in _variables(board, "datasource")]
    return [] if found == [("datasource", "Data source", "prometheus")] else [f"data sources: {found}"]


def _template(name: str) -> Rule:
    def rule(board: Board) -> list[str]:
        found = [item for item in board["templating"]["list"] if item["name"] == name]
        wanted = {
            "type": "query",
            "label": name.capitalize(),
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
        }
        if len(found) != 1:
            return [f"{len(found)} variables {name}"]
        wrong = [
            f"{name}: {key} is {found[0].get(key)}" for key in wanted if found[0].get(key) != wanted[key]
        ]
        return wrong if found[0]["datasource"]["uid"] == SOURCE else [*wrong, f"{name}: not of {SOURCE}"]

    return rule


def template_label_promql(board: Board) -> list[str]:
    """Queries of variables are a function that the data source has, of a valid selector."""
    wrong, inner = [], []
    for item in _variables(board, "query"):
        query = re.fullmatch(r"([a-z_]+)\((.+), \w+\)", item["query"])
        if query is None or query[1] not in FUNCTIONS:
            wrong.append(f"{item['name']}: {item['query']}")
        else:
            inner.append(query[2])
    return wrong + unparsable(inner)


def template_on_time_change_reload(board: Board) -> list[str]:
    """Variables are asked for anew when the time range changes, which is 2."""
    return [item["name"] for item in _variables(board, "query") if item["refresh"] != 2]


def panel_datasource(board: Board) -> list[str]:
    """Panels and their targets use the variable."""
    wanted = {"type": "prometheus", "uid": SOURCE}
    owners = [
        (panel["title"], item) for panel in panels(board) for item in [panel, *panel.get("targets", [])]
    ]
    return [title for title, item in owners if item.get("datasource") != wanted]


def panel_title_description(board: Board) -> list[str]:
    """Both are there; here a description is a sentence, too."""
    return [
        f"{panel['id']}"
        for panel in panels(board)
        if not (panel["title"] and panel["description"].endswith("."))
    ]


def panel_units(board: Board) -> list[str]:
    """A unit that Grafana knows."""
    return [
        panel["title"] for panel in panels(board) if panel["fieldConfig"]["defaults"].get("unit") not in UNITS
    ]


def panel_no_targets(board: Board) -> list[str]:
    """Each panel asks something."""
    return [panel["title"] for panel in panels(board) if not panel.get("targets")]


def target_logql(board: Board) -> list[str]:
    """The boards ask Prometheus only, so the two rules about LogQL have nothing to check."""
    kinds = {item["datasource"]["type"] for panel in panels(board) for item in panel.get("targets", [])}
    kinds |= {item["query"] for item in _variables(board, "datasource")}
    return sorted(kinds - {"prometheus"})


def target_promql(board: Board) -> list[str]:
    """Valid, by promtool."""
    return unparsable(expressions(board))


def _selectors(board: Board) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for expr in expressions(board):
        for found in selectors(expr):
            yield expr, found


def target_rate_interval(board: Board) -> list[str]:
    """Each range is Grafana's rate interval."""
    return [expr for expr, (_, _, span) in _selectors(board) if span not in ("", "[$__rate_interval]")]


def _target(name: str) -> Rule:
    def rule(board: Board) -> list[str]:
        matcher = re.compile(rf'[{{,]\s*{name}=~"\${name}"')
        return [
            f"{metric}: {expr}"
            for expr, (metric, found, _) in _selectors(board)
            if metric != "ALERTS" and not matcher.search(found)
        ]

    return rule


def target_counter_agg(board: Board) -> list[str]:
    """Counters are in a rate or an increase."""
    inside = re.compile(r"\b(?:rate|irate|increase)\((\w+_total)\b")
    wrong = []
    for expr in expressions(board):
        counters = [metric for metric, _, _ in selectors(expr) if metric.endswith("_total")]
        if len(counters) != len(inside.findall(expr)):
            wrong.append(expr)
    return wrong


def uneditable_dashboard(board: Board) -> list[str]:
    """Boards that come from files are not edited in Grafana."""
    return [] if board["editable"] is False else ["editable"]


RULES: dict[str, Rule] = {
    "template-datasource-rule": template_datasource,
    "template-job-rule": _template("job"),
    "template-instance-rule": _template("instance"),
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_on_time_change_reload,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-logql-rule": target_logql,
    "target-logql-auto-rule": target_logql,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-job-rule": _target("job"),
    "target-instance-rule": _target("instance"),
    "target-counter-agg-rule": target_counter_agg,
    "uneditable-dashboard": uneditable_dashboard,
}
