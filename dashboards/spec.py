"""What a board is made of, as data; :mod:`moescope.dashboards.render` turns it into Grafana's JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Kind = Literal["stat", "timeseries", "heatmap", "table", "matrix"]
Thresholds = tuple[tuple[float, str], ...]
"""(from value, colour) pairs, the smallest value first; values below the first are green."""


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and the legend of its series."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        kind: ``matrix`` is a table with a row for each value of one label and a column for each value of
            another; its cells are coloured by value.
        unit: Grafana's id of the unit.
        width: in columns, of which a board has 24.
        height: in Grafana's rows.
        thresholds: colours by value.
        axes: (label of the rows, label of the columns) of a matrix.
        link: path and query of the board that a table's row opens, filled in with the row's labels.
        scale: values of the coldest and the hottest colour, which run through yellow; thresholds, if None.
        sort: the column by which a table is sorted, the largest first.
    """

    kind: Kind
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 12
    height: int = 8
    thresholds: Thresholds = ()
    axes: tuple[str, str] = ("layer", "ep_rank")
    link: str = ""
    scale: tuple[float, float] | None = None
    sort: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A title with the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A template variable: the values of ``label`` in ``metric``; the label's name is ``name`` if empty."""

    name: str
    title: str
    metric: str
    label: str = ""
    many: bool = True
    all_value: str = ".+"
    """What All stands for; ``.*`` also matches series without the label."""


@dataclass(frozen=True, slots=True)
class Board:
    """A board; ``selector`` chooses the series of its annotations."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    selector: str


SERVICE: Final = 'cluster=~"$cluster",job=~"$job",instance=~"$instance"'
MODEL: Final = f'{SERVICE},server=~"$server",model=~"$model"'
LAYER: Final = f'{MODEL},layer=~"$layer"'

POOL: Final = f'{SERVICE},pool=~"$pool",role=~"$role"'

_CLUSTER: Final = Variable("cluster", "Cluster", "moescope_build_info", all_value=".*")
_JOB: Final = Variable("job", "Job", 'moescope_build_info{cluster=~"$cluster"}')
_INSTANCE: Final = Variable("instance", "Instance", 'moescope_build_info{cluster=~"$cluster",job=~"$job"}')
_SERVER: Final = Variable("server", "Deployment", f"moescope_producers{{{SERVICE}}}")
_MODEL: Final = Variable("model", "Model", f'moescope_producers{{{SERVICE},server=~"$server"}}')

SERVICE_VARIABLES: Final = (_CLUSTER, _JOB, _INSTANCE)
MODEL_VARIABLES: Final = (*SERVICE_VARIABLES, _SERVER, _MODEL)
ONE_MODEL_VARIABLES: Final = (*SERVICE_VARIABLES, replace(_SERVER, many=False), replace(_MODEL, many=False))
"""For boards that add up over EP ranks: the EP ranks of several deployments have nothing in common."""
RANK_VARIABLE: Final = Variable("rank", "DP rank", f"moescope_tokens_total{{{MODEL}}}", "dp_rank")
LAYER_VARIABLE: Final = Variable(
    "layer", "Layer", f"moescope_layer_dp_rank_slots_total{{{MODEL}}}", many=False
)


POOL_VARIABLES: Final = (
    Variable("pool", "Pool", f"moescope_producers{{{SERVICE}}}"),
    Variable("role", "Role", f'moescope_producers{{{SERVICE},pool=~"$pool"}}', all_value=".*"),
    Variable("replica", "Replica", f"moescope_producers{{{POOL}}}", "server"),
)


def rate(metric: str, selector: str, by: str) -> str:
    """The sum of a counter's rates by some labels, over all services that counted."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def most(metric: str, selector: str, by: str = "cluster, server, model") -> str:
    """The largest value of a gauge by some labels, because several services may report one deployment."""
    return f"max by ({by}) ({metric}{{{selector}}})"


def of_fair(metric: str, selector: str, row: str, column: str) -> str:
    """A counter's rate by row and column, as a multiple of the row's mean (its fair share)."""
    load = rate(metric, selector, f"{row}, {column}")
    return f"{load} / on ({row}) group_left () (avg by ({row}) ({load}) > 0)"


def least_even(metric: str, selector: str, row: str, column: str) -> str:
    """:func:`of_fair` of the rows with the largest values: as many as have `CELLS` cells, one at least."""
    cells = of_fair(metric, selector, row, column)
    rows = f"floor({CELLS} / count({rate(metric, selector, column)}))"
    most_rows = f"scalar(clamp_min({rows}, 1) or vector(1))"
    return f"{cells} and on ({row}) topk({most_rows}, max by ({row}) ({cells}))"


def or_none(expr: str, label: str) -> str:
    """The expression, or a single 0 with the label value ``none`` where the expression finds nothing."""
    return f'{expr} or on () label_replace(vector(0), "{label}", "none", "", "")'


def stat(
    title: str,
    description: str,
    query: Query,
    unit: str = "short",
    thresholds: Thresholds = (),
) -> Panel:
    """One large number, a quarter of the board wide."""
    return Panel("stat", title, description, (query,), unit, 6, 4, thresholds)


CENTRED: Final = (0.0, 2.0)
"""The scale of multiples of a fair share: 1 is in the middle."""
CELLS: Final = 2000
"""Most cells of a matrix; a browser draws no more of them in time, and nobody reads more."""
NAME: Final = "{{server}} {{model}}"
EXPERTS: Final = "moescope_layer_expert_slots_total"
NEEDS_EXPERTS: Final = " Needs --metrics-level layer_expert."
