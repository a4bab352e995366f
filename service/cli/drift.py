"""The command ``moescope drift``."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moescope.service.cli.asking import ask
from moescope.service.cli.options import (
    Deployment,
    EndOption,
    JsonOption,
    MinTokensOption,
    StartOption,
    WeightsOption,
    weights_param,
)
from moescope.service.cli.tables import part_note
from moescope.service.cli.terminal import print_json, terminal
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.weights import WeightsWish

_MOST_EXPERTS: Final = 8

DRIFT_HELP: Final = """Show how far routing has moved from a baseline, or from the hour before.

For each layer it shows the Jensen-Shannon divergence of the experts' shares in bits (0: alike, 1: nothing in
common) beside what sampling alone would show, the share of the slots that moved, and the experts that died or
became hot.

Examples:

  moescope drift                              the last five minutes against the hour before

  moescope drift --baseline release-1         against a pinned baseline

  moescope drift --phase decode

  moescope drift --start=-1h --json
"""


def drift(
    deployment: Deployment,
    baseline: Annotated[
        str, typer.Option(help="Name of a pinned baseline; previous_hour is the hour before the window.")
    ] = "previous_hour",
    phase: Annotated[Phase | None, typer.Option(help="Only tokens of this phase; both when absent.")] = None,
    start: StartOption = "-5m",
    end: EndOption = None,
    min_tokens: MinTokensOption = None,
    weights: WeightsOption = WeightsWish.LATEST,
    as_json: JsonOption = False,
) -> None:
    """Print the drift of a running service."""
    params = {
        **deployment.params,
        "baseline": baseline,
        "phase": None if phase is None else phase.value,
        "start": start,
        "end": end,
        "min_tokens": min_tokens,
        "weights": weights_param(weights),
    }
    answer = ask(deployment.url, "/v1/drift", params, 60.0)
    if as_json:
        print_json(answer)
    else:
        terminal().print(_drift_view(answer))


def _drift_view(answer: dict[str, Any]) -> RenderableType:
    where = f"{answer['model']} on {answer['server']}"
    tokens = "tokens" if answer["tokens"] is None else f"{answer['tokens']:,} tokens"
    of = "" if answer["phase"] is None else f" of {answer['phase']}"
    table = Table(title=f"{where}: {tokens}{of} against {answer['baseline']}")
    for name in ("layer", "tokens", "bits", "by sampling", "moved"):
        table.add_column(name, justify="right")
    for name in ("newly dead", "newly hot"):
        table.add_column(name, overflow="fold")
    for layer in answer["layers"]:
        if layer["divergence"] is None:
            continue
        table.add_row(
            str(layer["layer"]),
            f"{layer['tokens']:,}",
            f"{layer['divergence']:.4f}",
            f"{layer['noise']:.4f}",
            f"{layer['moved']:.1%}",
            _some(layer["new_dead"]),
            _some(layer["new_hot"]),
        )
    reasons = sorted({layer["reason"] for layer in answer["layers"] if layer["reason"]})
    notes = (Text(f"- {reason}", style="dim") for reason in reasons)
    return Group(table, _summary(answer), *notes, *part_note(answer))


def _summary(answer: dict[str, Any]) -> Text:
    summary = answer["summary"]
    if summary["median"] is None:
        return Text("No sample: no layer has enough tokens in both windows.", style="bold")
    found = summary["median"] > 3 * summary["noise"]
    verdict = "Drifted" if found else "No drift beyond sampling"
    return Text(
        f"{verdict}: median {summary['median']:.4f} bits (sampling alone "
        f"{summary['noise']:.4f}), worst {summary['worst']:.4f} in layer {summary['worst_layer']}; "
        f"{summary['new_dead']} experts newly dead, {summary['new_hot']} newly hot",
        style="bold yellow" if found else "bold",
    )


def _some(experts: list[int]) -> str:
    shown = " ".join(map(str, experts[:_MOST_EXPERTS]))
    return f"{shown} and {len(experts) - _MOST_EXPERTS} more" if len(experts) > _MOST_EXPERTS else shown
