"""Turns boards into Grafana's JSON, with Grafana's own SDK (needed for development, not by the package)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from moescope.dashboards.spec import Board, Panel, Row, Variable

_SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# The builders have the same methods by convention; they share no type.
_KINDS: Final[dict[str, Callable[[], Any]]] = {
    "stat": stat.Panel,
    "timeseries": timeseries.Panel,
    "heatmap": heatmap.Panel,
    "table": table.Panel,
    "matrix": table.Panel,
}
_TAG: Final = "moescope"
_MATRIX_CELL: Final = 50
"""Least width of a matrix's columns, pixels."""
_INSTANT: Final = ("stat", "table", "matrix")


def render(board: Board) -> str:
    """The board's JSON, ending in a newline."""
    made = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([_TAG])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_other_boards())
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    for name, colour, expr in _annotations(board.selector):
        made = made.annotation(
            builders.AnnotationQuery()
            .name(name)
            .datasource(_SOURCE)
            .enable(True)
            .icon_color(colour)
            .expr(expr)
        )
    document = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    document["panels"] = list(_placed(board.rows))
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _annotations(selector: str) -> Iterator[tuple[str, str, str]]:
    """Name, colour and PromQL of what is marked: one mark a deployment, however many ranks it has."""
    by = "max by (cluster, server, model)"
    for name, colour, metric in (
        ("Restarts of workers", "orange", "moescope_producer_start_time_seconds"),
        ("Rearrangements of experts", "purple", "moescope_placement_version"),
        ("Changes of weights", "green", "moescope_weights_version"),
    ):
        yield name, colour, f"{by} (changes({metric}{{{selector}}}[$__rate_interval])) > 0"
    ranks = f"count by (cluster, server, model) (moescope_snapshot_age_seconds{{{selector}}})"
    yield "Changes of size", "blue", f"changes({ranks}[$__rate_interval:]) > 0"


def _other_boards() -> builders.DashboardLink:
    return (
        builders.DashboardLink("moescope boards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )


def _variable(variable: Variable) -> builders.QueryVariable:
    label = variable.label or variable.name
    made = (
        builders.QueryVariable(variable.name)
        .label(variable.title)
        .datasource(_SOURCE)
        .query(f"label_values({variable.metric}, {label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NUMERICAL_ASC)
    )
    if not variable.many:
        return made
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return made.multi(True).include_all(True).all_value(variable.all_value).current(everything)


def _placed(rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    """Panels with their ids and places: rows one below the other, the panels of a row from left to right."""
    number, y = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        }
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, y, height = 0, y + height, 0
            number += 1
            yield {
                **_panel(panel),
                "id": number,
                "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
            }
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(panel: Panel) -> dict[str, Any]:
    made = _KINDS[panel.kind]().title(panel.title).description(panel.description).datasource(_SOURCE)
    for i, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(65 + i))
        target = target.datasource(_SOURCE)
        if panel.kind in _INSTANT:
            target = target.instant()
        if panel.kind in ("table", "matrix"):
            target = target.format(PromQueryFormat.TABLE)
        made = made.with_target(target)
    document: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    # Written into the JSON: the SDK's heatmaps lack these methods, and tables need transformations.
    defaults = document.setdefault("fieldConfig", {"overrides": []}).setdefault("defaults", {})
    defaults["unit"] = panel.unit
    steps = [{"value": None, "color": "green"}, *({"value": v, "color": c} for v, c in panel.thresholds)]
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "heatmap":
        options = document.setdefault("options", {})
        options |= {
            "calculate": False,
            "cellGap": 0,
            "color": {"mode": "scheme", "scheme": "Viridis", "steps": 64},
        }
        if panel.scale is not None:
            # Grafana turns this scheme round: red is the largest value.
            low, high = panel.scale
            options["color"] |= {"scheme": "RdYlBu", "min": low, "max": high}
        options["yAxis"] = {"unit": "none"}
        options["cellValues"] = {"unit": panel.unit}
    if panel.kind in ("table", "matrix"):
        document["transformations"] = _transformations(panel)
        if panel.sort:
            document.setdefault("options", {})["sortBy"] = [{"displayName": panel.sort, "desc": True}]
        if panel.scale is not None:
            defaults["color"] = {"mode": "continuous-BlYlRd"}
            defaults["min"], defaults["max"] = panel.scale
        if panel.kind == "matrix" or panel.thresholds or panel.scale is not None:
            cells = {"cellOptions": {"type": "color-background", "mode": "basic"}}
            defaults["custom"] = cells | ({"minWidth": _MATRIX_CELL} if panel.kind == "matrix" else {})
            document["fieldConfig"]["overrides"] = [_uncoloured(panel)]
    if panel.link:
        url = {"title": "Open", "url": panel.link, "targetBlank": panel.link.startswith("http")}
        defaults["links"] = [url]
    return document


def _uncoloured(panel: Panel) -> dict[str, Any]:
    """The override that leaves labels uncoloured; Grafana would colour them by the number they begin with."""
    matcher = {"id": "byType", "options": "string"}
    if panel.kind == "matrix":
        matcher = {"id": "byName", "options": "\\".join(panel.axes)}
    plain = {"id": "custom.cellOptions", "value": {"type": "auto"}}
    return {"matcher": matcher, "properties": [plain]}


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    if panel.kind == "matrix":
        row, column = panel.axes
        numbers = [{"targetField": name, "destinationType": "number"} for name in panel.axes]
        options = {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "null"}
        return [
            {"id": "convertFieldType", "options": {"conversions": numbers}},  # or 10 would come before 9
            *({"id": "sortBy", "options": {"sort": [{"field": name}]}} for name in (column, row)),
            {"id": "groupingToMatrix", "options": options},
        ]
    names = {f"Value #{chr(65 + i)}": query.legend for i, query in enumerate(panel.queries)}
    if len(panel.queries) == 1:
        names = {"Value": panel.queries[0].legend}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
    ]
