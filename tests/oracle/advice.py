"""What /v1/advice should answer, but for the placements that EPLB makes (docs/measures.md, "Advice")."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

from tests.oracle.deployment import Deployment
from tests.oracle.exact import summary
from tests.oracle.layout import Layer
from tests.oracle.window import Window

MIN_GAIN: Final = 0.05
PIECES: Final = 4
LEAST_S: Final = 600.0
BORDER: Final = 1e-9
"""Savings so near to the least gain could be on either side of it."""


def advice(deployment: Deployment, start: float, share: float, got: dict[str, Any]) -> dict[str, Any]:
    """The answer as far as the layers that it judged and the options that it lists go."""
    used = Window(deployment, start, None).used
    begin, end = max(start, min(used[0])), max(used[1])
    cut = begin + share * (end - begin)
    fit, later = Window(deployment, start, cut), Window(deployment, cut, None)
    edges = [cut + (end - cut) * piece / PIECES for piece in range(PIECES)] + [end]
    pieces = [Window(deployment, a, b) for a, b in itertools.pairwise(edges)]
    layers = [layer for layer in deployment.layers if layer.index in got["layers"]]
    expected: dict[str, Any] = {"fit_tokens": fit.all_tokens, "held_out_tokens": later.all_tokens}
    expected["options"] = [
        _option(option, layers, fit, later, pieces, got["base"]) for option in got["options"]
    ]
    decision = _decision(got)
    if decision != "no_sample" and end - begin < LEAST_S:
        decision = None if LEAST_S - (end - begin) < 1 else "too_early"
    return expected if decision is None else {**expected, "verdict": {"decision": decision}}


def _option(
    option: dict[str, Any],
    layers: Sequence[Layer],
    fit: Window,
    later: Window,
    pieces: Sequence[Window],
    base: dict[str, Any],
) -> dict[str, Any]:
    expected: dict[str, Any] = {
        f"saving_{part}": 1 - option[part]["ratio_of_sums"] / base[part]["ratio_of_sums"]
        for part in ("fitted", "held_out")
    }
    if _loads(fit, layers, option["strategy"]) is None:
        return expected
    for part, window in (("fitted", fit), ("held_out", later)):
        expected[part] = summary(_loads(window, layers, option["strategy"]) or [])
    shown = [_loads(piece, layers, option["strategy"]) or [] for piece in pieces]
    expected["pieces"] = [summary([one for one in piece if sum(one[1])])["ratio_of_sums"] for piece in shown]
    return expected


def _loads(window: Window, layers: Sequence[Layer], strategy: str) -> list[tuple[int, list[Any]]] | None:
    """Index and loads by EP rank of each layer; None: not without another's placement."""
    ranks = window.deployment.fleet.ep
    found = []
    for layer in layers:
        seen = window.layer(layer)
        if strategy == "present" and seen.ep is not None:
            found.append((layer.index, list(seen.ep)))
        elif strategy == "linear" and layer.experts % ranks == 0:
            each = layer.experts // ranks
            found.append((layer.index, [sum(seen.slots[r * each : (r + 1) * each]) for r in range(ranks)]))
        else:
            return None
    return found


def _decision(got: dict[str, Any]) -> str | None:
    """The verdict by the figures of the options; None: a saving is too near to the border."""
    if not got["layers"]:
        return "no_sample"
    options = [option for option in got["options"] if option["strategy"] != "present"]
    if any(abs(figure - MIN_GAIN) < BORDER for figure in _figures(options, got["base"])):
        return None
    if any(option["saving_held_out"] >= MIN_GAIN for option in options):
        return "worth_it"
    best = max(options, key=lambda option: option["saving_fitted"])
    if best["saving_fitted"] < MIN_GAIN:
        return "not_worth_it"
    return "not_worth_it" if _against_former(best, got["base"]) >= MIN_GAIN else "ages_too_fast"


def _figures(options: Sequence[dict[str, Any]], base: dict[str, Any]) -> Iterator[float]:
    for option in options:
        yield from (option["saving_fitted"], option["saving_held_out"], _against_former(option, base))


def _against_former(option: dict[str, Any], base: dict[str, Any]) -> float:
    """What an option saves in the later part against the base in the part that it was fitted on."""
    return 1 - float(option["held_out"]["ratio_of_sums"] / Fraction(base["fitted"]["ratio_of_sums"]))
