"""The command ``moescope drift``."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from moescope.service.cli.asking import ask_working
from moescope.service.cli.balance_views import part_note
from moescope.service.cli.codes import ExitCode
from moescope.service.cli.options import (
    Deployment,
    EndOption,
    MinTokensOption,
    StartOption,
    WeightsOption,
    weights_param,
)
from moescope.service.cli.output import Output, show
from moescope.service.cli.sheets import (
    Column,
    Line,
    Readers,
    Sheet,
    View,
    count,
    fixed,
    notes,
    percent,
    whose,
    word,
)
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

  moescope drift --start=-1h -o json

The exit code is 7 where no layer has enough tokens in both windows.
"""


def drift(
    deployment: Deployment,
    output: Output,
    baseline: Annotated[
        str, typer.Option(help="Name of a pinned baseline; previous_hour is the hour before the window.")
    ] = "previous_hour",
    phase: Annotated[Phase | None, typer.Option(help="Only tokens of this phase; both when absent.")] = None,
    start: StartOption = "-5m",
    end: EndOption = None,
    min_tokens: MinTokensOption = None,
    weights: WeightsOption = WeightsWish.LATEST,
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
    answer = ask_working(deployment.url, "/v1/drift", params, 60.0)
    show(output, answer, drift_view)
    if answer["summary"]["median"] is None:
        raise typer.Exit(ExitCode.NOT_KNOWN)


def _some(experts: list[int]) -> str:
    shown = " ".join(map(str, experts[:_MOST_EXPERTS]))
    return f"{shown} and {len(experts) - _MOST_EXPERTS} more" if len(experts) > _MOST_EXPERTS else shown


_COLUMNS = (
    *whose(),
    word("baseline", "baseline", readers=Readers.PROGRAMS),
    Column("layer", "layer", key=True),
    Column("tokens", "tokens", count),
    Column("base_tokens", "of the baseline", count, readers=Readers.WIDE),
    Column("divergence_bits", "bits", fixed(4)),
    Column("noise_bits", "by sampling", fixed(4)),
    Column("moved_share", "moved", percent),
    word("newly_dead", "newly dead", form=_some, prose=True),
    word("newly_hot", "newly hot", form=_some, prose=True),
    word("reason", "reason", readers=Readers.PROGRAMS),
)
_FIELDS: Final = (
    *("layer", "tokens", "base_tokens", "divergence", "noise", "moved"),
    *("new_dead", "new_hot", "reason"),
)


_FOUND: Final = {
    "drifted": "Drifted",
    "little": "Little drift, though beyond sampling",
    "chance": "No drift beyond sampling",
}
"""What the service judges, by the thresholds of its verdict; the page has the same words."""


def drift_view(answer: dict[str, Any]) -> View:
    """A line for each layer that can be compared, the summary, and why others can't."""
    tokens = "tokens" if answer["tokens"] is None else f"{answer['tokens']:,} tokens"
    of = "" if answer["phase"] is None else f" of {answer['phase']}"
    title = f"{answer['model']} on {answer['server']}: {tokens}{of} against {answer['baseline']}"
    whose_it_is = (answer["server"], answer["model"], answer["baseline"])
    rows = [(*whose_it_is, *(layer[name] for name in _FIELDS)) for layer in answer["layers"]]
    bits = _FIELDS.index("divergence") + len(whose_it_is)
    known = [row for row in rows if row[bits] is not None]
    parts: list[Sheet | Line] = [Sheet(title, _COLUMNS, rows, readers=Readers.PROGRAMS)]
    parts.append(Sheet(title, _COLUMNS, known, readers=Readers.PEOPLE) if known else Line(title, "italic"))
    reasons = sorted({layer["reason"] for layer in answer["layers"] if layer["reason"]})
    return View((*parts, _summary(answer), *notes(reasons), *part_note(answer)))


def _summary(answer: dict[str, Any]) -> Line:
    summary = answer["summary"]
    if summary["median"] is None:
        return Line("No sample: no layer has enough tokens in both windows.", "bold")
    return Line(
        f"{_FOUND[summary['found']]}: {percent(summary['moved'])} of the slots moved; "
        f"median {summary['median']:.4f} bits (sampling alone {summary['noise']:.4f}), "
        f"worst {summary['worst']:.4f} in layer {summary['worst_layer']}; "
        f"{summary['new_dead']} experts newly dead, {summary['new_hot']} newly hot",
        "bold yellow" if summary["found"] == "drifted" else "bold",
    )
