"""What /v1/advice and /v1/advice/rearrangements answer, for people and for csv."""

from __future__ import annotations

from typing import Any

from moescope.service.cli.balance_views import part_note
from moescope.service.cli.sheets import (
    Column,
    Line,
    Readers,
    Sheet,
    View,
    count,
    fixed,
    gain,
    notes,
    percent,
    whose,
    word,
)
from moescope.service.cli.terminal import utc

_STYLES = {
    "worth_it": "bold green",
    "not_worth_it": "bold",
    "ages_too_fast": "bold yellow",
    "too_early": "bold",
    "no_sample": "bold red",
}
_CAPTION = (
    "saves: share of the busiest ranks' slots; held out: on loads that it was not fitted on; "
    "in vain: copies on a rank that has that expert already"
)
_OPTIONS = (
    *whose(),
    word("placement", "placement", prose=True, key=True),
    word("strategy", "strategy", readers=Readers.PROGRAMS),
    Column("redundant", "redundant", readers=Readers.PROGRAMS),
    Column("fitted_ratio_of_sums", "fitted", fixed(3), spare=1),
    Column("later_ratio_of_sums", "later", fixed(3)),
    Column("saving_fitted", "saves: predicted", gain, spare=1),
    Column("saving_held_out", "held out", gain),
    Column("worst", "worst layer's", fixed(3), spare=2),
    Column("worst_layer", "in layer", spare=2),
    Column("copies_to_move", "copies to move", count),
    Column("copies_in_vain", "in vain", count),
    word("recommended", "recommended", readers=Readers.PROGRAMS),
)
_REARRANGEMENTS = (
    *whose(),
    word("at", "at (UTC)", form=utc, key=True),
    Column("version", "version"),
    Column("copies_moved", "moved", count),
    Column("before", "before", fixed(3)),
    Column("predicted", "predicted", fixed(3), spare=1),
    Column("achieved", "after", fixed(3)),
    Column("otherwise", "otherwise", fixed(3), spare=3),
    Column("saving_predicted", "saves: predicted", gain, spare=2),
    Column("saving_achieved", "achieved", gain),
    Column("cost_before", "steps wait: before", percent, spare=4),
    Column("cost_after", "after it", percent, spare=4),
)


def advice_view(answer: dict[str, Any], with_layers: bool) -> View:
    """The verdict, the options, each layer if ``with_layers``, and what the verdict rests on."""
    verdict = answer["verdict"]
    parts: list[Sheet | Line] = [Line(answer["short"], "bold yellow")] if answer["short"] else []
    parts.append(Line(verdict["words"], _STYLES[verdict["decision"]]))
    parts.append(_options(answer))
    if with_layers and answer["options"]:
        parts.append(_layers(answer))
    parts += notes(verdict["evidence"])
    if with_layers:
        left_out = answer["left_out"]
        parts += notes([f"layer {item['layer']} was not judged: {item['reason']}" for item in left_out])
    return View((*parts, *part_note(answer)))


def _options(answer: dict[str, Any]) -> Sheet:
    where = f"{answer['model']} on {answer['server']}, {answer['ranks']} EP ranks"
    verdict = answer["verdict"]
    shown = list(answer["options"])
    if shown and answer["base"]["strategy"] == "present":
        shown.insert(0, answer["base"])
    chosen = [(item["strategy"], item["redundant"]) == _named(verdict) for item in shown]
    rows = [
        (
            *(answer["server"], answer["model"], item["name"], item["strategy"], item["redundant"]),
            *(item["fitted"]["ratio_of_sums"], item["held_out"]["ratio_of_sums"]),
            *(
                None if item["strategy"] == "present" else item[name]
                for name in ("saving_fitted", "saving_held_out")
            ),
            *(item["held_out"]["worst"], item["held_out"]["worst_layer"]),
            *(item["copies_to_move"], item["copies_in_vain"], best),
        )
        for item, best in zip(shown, chosen, strict=True)
    ]
    return Sheet(
        f"{where}: imbalance is sum of max / sum of mean over layers",
        _OPTIONS,
        rows,
        caption=_CAPTION,
        readers=Readers.ALL if rows else Readers.PROGRAMS,
        chosen=frozenset(i for i, best in enumerate(chosen) if best),
    )


def _named(verdict: dict[str, Any]) -> tuple[str | None, int | None]:
    return verdict["strategy"], verdict["redundant"]


def _layers(answer: dict[str, Any]) -> Sheet:
    """Imbalance of each layer in the later window, under the base and every option."""
    shown = [answer["base"], *answer["options"]]
    columns = [Column("layer", "layer", key=True)]
    columns += [Column(f"option_{i}", item["name"], fixed(3)) for i, item in enumerate(shown)]
    rows = [
        (layer, *(item["held_out_by_layer"][i] for item in shown)) for i, layer in enumerate(answer["layers"])
    ]
    return Sheet("Imbalance by layer in the later window", columns, rows, readers=Readers.PEOPLE)


def rearrangements_view(answer: dict[str, Any]) -> View:
    """A line for each rearrangement."""
    found = answer["rearrangements"]
    where = f"{answer['model']} on {answer['server']}"
    names = [column.name for column in _REARRANGEMENTS[2:]]
    sheet = Sheet(
        f"{where}: imbalance over EP ranks, up to five minutes before and after",
        _REARRANGEMENTS,
        [(answer["server"], answer["model"], *(item[name] for name in names)) for item in found],
        readers=Readers.ALL if found else Readers.PROGRAMS,
    )
    if not found:
        text = "No rearrangement since the service started: EPLB is off, or has not had its turn yet."
        return View((sheet, Line(text)))
    reasons = [
        f"version {item['version']}: {words}{item[name]}"
        for item in found
        for name, words in (("reason", ""), ("ep_estimate", "an estimate: "), ("weights", ""))
        if item.get(name)
    ]
    return View((sheet, *notes(reasons)))
