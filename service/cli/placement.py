"""The command ``moescope placement``: where the copies of the experts are now."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from moescope.service.cli.asking import ask
from moescope.service.cli.options import Deployment, LayerOption
from moescope.service.cli.output import Output, show
from moescope.service.cli.sheets import Column, Line, Readers, Sheet, View, count, notes, whose, word
from moescope.service.cli.terminal import utc

PLACEMENT_HELP: Final = """Show where the copies of each expert are now, layer by layer, and since when.

With --layer it shows each expert's copies, otherwise a line for each layer.

Examples:

  moescope placement

  moescope placement --layer 3

  moescope placement --layer 3 -o csv        a line for each copy
"""


def _since(instant: float | None) -> str:
    return "before the service's start" if instant is None else utc(instant)


def _everywhere(instant: float | None) -> str:
    return "not yet" if instant is None else utc(instant)


_LAYERS: Final = (
    *whose(),
    Column("layer", "layer", key=True),
    Column("experts", "experts", count),
    Column("copies", "copies", count),
    Column("spread", "copies of one rank", readers=Readers.PEOPLE),
    Column("copies_of_one_rank_min", "copies of one rank, least", readers=Readers.PROGRAMS),
    Column("copies_of_one_rank_max", "copies of one rank, most", readers=Readers.PROGRAMS),
    Column("experts_with_several_copies", "experts with several", count, spare=1),
    Column("copies_in_vain", "in vain", count, spare=1),
    Column("version", "version", spare=2),
    word("since", "since (UTC)", form=_since),
    word("everywhere_since", "everywhere (UTC)", form=_everywhere, spare=3),
)
_COPIES: Final = (
    *whose(),
    Column("layer", "layer"),
    Column("expert", "expert"),
    Column("ep_rank", "EP rank"),
    Column("physical", "physical expert"),
)
_EXPERTS: Final = (
    Column("expert", "expert", key=True),
    word("copies", "copies: EP rank (physical expert)", prose=True),
)


def placement(deployment: Deployment, output: Output, layer: LayerOption = None) -> None:
    """Print the placement of a deployment's experts."""
    form = "copies" if layer else "tables"
    params = {**deployment.params, "layer": layer, "form": form}
    answer = ask(deployment.url, "/v1/placement", params)
    show(output, answer, _by_expert if layer else _by_layer)


def _by_layer(answer: dict[str, Any]) -> View:
    rows = []
    for layer in answer["layers"]:
        if layer["reason"] is None:
            found = answer["tables"][layer["table"]]
            numbers = _numbers(found, answer["ep_size"])
            times = (layer["version"], layer["since"], layer["everywhere_since"])
            rows.append(
                (answer["server"], answer["model"], layer["layer"], layer["num_experts"], *numbers, *times)
            )
    unknown = [layer for layer in answer["layers"] if layer["reason"] is not None]
    reasons = Counter(layer["reason"] for layer in unknown)
    said = [f"not known for {number} layers: {reason}" for reason, number in reasons.items()]
    said += [f"layer {one['layer']}: {one['partial']}" for one in answer["layers"] if one["partial"]]
    return View((Sheet(_title(answer), _LAYERS, rows), *notes([*said, *_missing(answer)], style="")))


def _missing(answer: dict[str, Any]) -> list[str]:
    """What is not in the answer, a line each."""
    notes = [answer["partial"]] if answer["partial"] else []
    notes += [f"layer {item['layer']} is not covered: {item['reason']}" for item in answer["uncovered"]]
    for item in answer["absent"]:
        name = "some layers are" if item["layer"] is None else f"layer {item['layer']} is"
        notes.append(f"{name} absent: {item['reason']}")
    return notes


def _numbers(found: dict[str, Any], ep_size: int) -> list[Any]:
    """How many copies there are, how many a rank has, of how many experts there are several, and doubles.

    A copy is in vain on a rank that has another one of the same expert.
    """
    logical, ranks = found["physical_to_logical"], found["physical_to_ep_rank"]
    by_rank, by_expert = Counter(ranks), Counter(logical)
    each = [by_rank.get(rank, 0) for rank in range(ep_size)]
    spread = str(min(each)) if min(each) == max(each) else f"{min(each)} to {max(each)}"
    in_vain = sum(double["copies"] - 1 for double in found["doubles"])
    several = sum(number > 1 for number in by_expert.values())
    return [len(logical), spread, min(each), max(each), several, in_vain]


def _by_expert(answer: dict[str, Any]) -> View:
    parts: list[Sheet | Line] = [Line(_title(answer))]
    for layer in answer["layers"]:
        name = f"layer {layer['layer']}"
        if layer["reason"] is not None:
            parts.append(Line(f"{name}: not known: {layer['reason']}"))
            continue
        since, everywhere = _since(layer["since"]), _everywhere(layer["everywhere_since"])
        title = f"{name}, version {layer['version']} since {since}, everywhere since {everywhere}"
        copies = list(enumerate(layer["copies"]))
        rows = [(expert, _held(found) or "not known") for expert, found in copies]
        parts.append(Sheet(title, _EXPERTS, rows, readers=Readers.PEOPLE))
        parts += notes([_double(double) for double in layer["doubles"]], style="")
        where = (answer["server"], answer["model"], layer["layer"])
        raw = [
            (*where, expert, copy["ep_rank"], copy["physical"]) for expert, found in copies for copy in found
        ]
        parts.append(Sheet("", _COPIES, raw, readers=Readers.PROGRAMS))
    return View((*parts, *notes(_missing(answer), style="")))


def _held(copies: list[dict[str, int]]) -> str:
    return ", ".join(f"{copy['ep_rank']} ({copy['physical']})" for copy in copies)


def _double(found: dict[str, int]) -> str:
    copies = f"{found['copies']} copies of expert {found['expert']}"
    return f"EP rank {found['ep_rank']} has {copies}: memory for nothing"


def _title(answer: dict[str, Any]) -> str:
    return f"{answer['model']} on {answer['server']}: placement over {answer['ep_size']} EP ranks"
