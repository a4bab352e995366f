"""The answer of /v1/advice for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moescope.service.cli.tables import part_note
from moescope.service.cli.terminal import utc

_STYLES = {
    "worth_it": "bold green",
    "not_worth_it": "bold",
    "ages_too_fast": "bold yellow",
    "too_early": "bold",
    "no_sample": "bold red",
}


def advice_view(answer: dict[str, Any], with_layers: bool) -> RenderableType:
    """The verdict, the options, each layer if ``with_layers``, and what the verdict rests on."""
    verdict = answer["verdict"]
    parts: list[RenderableType] = [Text(answer["short"], style="bold yellow")] if answer["short"] else []
    parts.append(Text(verdict["words"], style=_STYLES[verdict["decision"]]))
    if answer["options"]:
        parts.append(_options(answer))
    if with_layers and answer["options"]:
        parts.append(_layers(answer))
    parts += [Text(f"- {line}", style="dim") for line in verdict["evidence"]]
    if with_layers:
        parts += [
            Text(f"- layer {item['layer']} was not judged: {item['reason']}", style="dim")
            for item in answer["left_out"]
        ]
    return Group(*parts, *part_note(answer))


def rearrangements_view(answer: dict[str, Any]) -> RenderableType:
    """The answer of /v1/advice/rearrangements: a line for each."""
    if not answer["rearrangements"]:
        return Text("No rearrangement since the service started: EPLB is off, or has not had its turn yet.")
    where = f"{answer['model']} on {answer['server']}"
    table = Table(title=f"{where}: imbalance over EP ranks, up to five minutes before and after")
    table.add_column("at (UTC)")
    for name in (
        "version",
        "moved",
        "before",
        "predicted",
        "after",
        "otherwise",
        "saves: predicted",
        "achieved",
        "steps wait: before",
        "after it",
    ):
        table.add_column(name, justify="right")
    for item in answer["rearrangements"]:
        moved = item["copies_moved"]
        table.add_row(
            utc(item["at"]),
            str(item["version"]),
            "-" if moved is None else f"{moved:,}",
            *(_ratio(item[name]) for name in ("before", "predicted", "achieved", "otherwise")),
            *(_percent(item[name]) for name in ("saving_predicted", "saving_achieved")),
            *("-" if item[name] is None else f"{item[name]:.1%}" for name in ("cost_before", "cost_after")),
        )
    reasons = [
        f"- version {item['version']}: {words}{item[name]}"
        for item in answer["rearrangements"]
        for name, words in (("reason", ""), ("ep_estimate", "an estimate: "), ("weights", ""))
        if item.get(name)
    ]
    return Group(table, *(Text(line, style="dim") for line in reasons))


def _options(answer: dict[str, Any]) -> Table:
    where = f"{answer['model']} on {answer['server']}, {answer['ranks']} EP ranks"
    table = Table(title=f"{where}: imbalance is sum of max / sum of mean over layers", caption=_caption())
    table.add_column("placement")
    for name in (
        "fitted",
        "later",
        "saves: predicted",
        "held out",
        "worst layer",
        "copies to move",
        "in vain",
    ):
        table.add_column(name, justify="right")
    chosen = answer["verdict"]["strategy"], answer["verdict"]["redundant"]
    shown = (
        [answer["base"], *answer["options"]] if answer["base"]["strategy"] == "present" else answer["options"]
    )
    for item in shown:
        worst = item["held_out"]
        moves = item["copies_to_move"]
        table.add_row(
            item["name"],
            _ratio(item["fitted"]["ratio_of_sums"]),
            _ratio(worst["ratio_of_sums"]),
            *(
                "" if item["strategy"] == "present" else f"{item[name]:+.1%}"
                for name in ("saving_fitted", "saving_held_out")
            ),
            "-" if worst["worst"] is None else f"{worst['worst']:.3f} ({worst['worst_layer']})",
            "" if moves is None else f"{moves:,}",
            "" if item["copies_in_vain"] is None else f"{item['copies_in_vain']:,}",
            style="green" if (item["strategy"], item["redundant"]) == chosen else None,
        )
    return table


def _layers(answer: dict[str, Any]) -> Table:
    """Imbalance of each layer in the later window, under the base and every option."""
    table = Table(title="Imbalance by layer in the later window")
    table.add_column("layer", justify="right")
    shown = [answer["base"], *answer["options"]]
    for item in shown:
        table.add_column(item["name"], justify="right")
    for i, layer in enumerate(answer["layers"]):
        table.add_row(str(layer), *(_ratio(item["held_out_by_layer"][i]) for item in shown))
    return table


def _caption() -> str:
    return (
        "saves: share of the busiest ranks' slots; held out: on loads that it was not fitted on; "
        "in vain: copies on a rank that has that expert already"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
