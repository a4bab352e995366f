"""The command ``moescope placement``: where the copies of the experts are now."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moescope.service.cli.asking import ask
from moescope.service.cli.options import Deployment, JsonOption, LayerOption
from moescope.service.cli.terminal import print_json, terminal, utc
from moescope.service.logs import printable

PLACEMENT_HELP: Final = """Show where the copies of each expert are now, layer by layer, and since when.

With --layer it shows each expert's copies, otherwise a line for each layer.

Examples:

  moescope placement

  moescope placement --layer 3

  moescope placement --json
"""


def placement(deployment: Deployment, layer: LayerOption = None, json: JsonOption = False) -> None:
    """Print the placement of a deployment's experts."""
    form = "copies" if layer else "tables"
    params = {**deployment.params, "layer": layer, "form": form}
    answer = ask(deployment.url, "/v1/placement", params)
    if json:
        print_json(answer)
        return
    terminal().print(_by_expert(answer) if layer else _by_layer(answer))


def _by_layer(answer: dict[str, Any]) -> RenderableType:
    table = Table(title=_title(answer))
    for name in ("layer", "experts", "copies", "copies of one rank", "experts with several", "in vain"):
        table.add_column(name, justify="right")
    for name in ("version", "since (UTC)", "everywhere (UTC)"):
        table.add_column(name, overflow="fold")
    for layer in answer["layers"]:
        if layer["reason"] is None:
            found = answer["tables"][layer["table"]]
            numbers = _numbers(found, answer["ep_size"])
            table.add_row(str(layer["layer"]), str(layer["num_experts"]), *numbers, *_times(layer))
    unknown = [layer for layer in answer["layers"] if layer["reason"] is not None]
    reasons = Counter(layer["reason"] for layer in unknown)
    notes = [f"- not known for {count} layers: {printable(reason)}" for reason, count in reasons.items()]
    notes += [
        f"- layer {one['layer']}: {printable(one['partial'])}" for one in answer["layers"] if one["partial"]
    ]
    return Group(table, *map(Text, [*notes, *_missing(answer)]))


def _missing(answer: dict[str, Any]) -> list[str]:
    """What is not in the answer, a line each."""
    notes = [f"- {printable(answer['partial'])}"] if answer["partial"] else []
    notes += [
        f"- layer {item['layer']} is not covered: {printable(item['reason'])}" for item in answer["uncovered"]
    ]
    for item in answer["absent"]:
        name = "some layers are" if item["layer"] is None else f"layer {item['layer']} is"
        notes.append(f"- {name} absent: {printable(item['reason'])}")
    return notes


def _numbers(found: dict[str, Any], ep_size: int) -> list[str]:
    """How many copies there are, how many a rank has, of how many experts there are several, and doubles.

    A copy is in vain on a rank that has another one of the same expert.
    """
    logical, ranks = found["physical_to_logical"], found["physical_to_ep_rank"]
    by_rank, by_expert = Counter(ranks), Counter(logical)
    each = [by_rank.get(rank, 0) for rank in range(ep_size)]
    spread = str(min(each)) if min(each) == max(each) else f"{min(each)} to {max(each)}"
    in_vain = sum(double["copies"] - 1 for double in found["doubles"])
    return [str(len(logical)), spread, str(sum(count > 1 for count in by_expert.values())), str(in_vain)]


def _by_expert(answer: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [Text(_title(answer))]
    for layer in answer["layers"]:
        name = f"layer {layer['layer']}"
        if layer["reason"] is not None:
            parts.append(Text(f"{name}: not known: {printable(layer['reason'])}"))
            continue
        version, since, everywhere = _times(layer)
        table = Table(title=f"{name}, version {version} since {since}, everywhere since {everywhere}")
        table.add_column("expert", justify="right")
        table.add_column("copies: EP rank (physical expert)")
        for expert, copies in enumerate(layer["copies"]):
            held = ", ".join(f"{copy['ep_rank']} ({copy['physical']})" for copy in copies)
            table.add_row(str(expert), held or "not known")
        parts.append(table)
        parts += [Text(f"- {_double(double)}") for double in layer["doubles"]]
    return Group(*parts, *map(Text, _missing(answer)))


def _double(found: dict[str, int]) -> str:
    copies = f"{found['copies']} copies of expert {found['expert']}"
    return f"EP rank {found['ep_rank']} has {copies}: memory for nothing"


def _title(answer: dict[str, Any]) -> str:
    return printable(f"{answer['model']} on {answer['server']}: placement over {answer['ep_size']} EP ranks")


def _times(layer: dict[str, Any]) -> list[str]:
    since, everywhere = layer["since"], layer["everywhere_since"]
    return [
        str(layer["version"]),
        "before the service's start" if since is None else utc(since),
        "not yet" if everywhere is None else utc(everywhere),
    ]
