"""What Prometheus' recording rules should make of the counters of a story (dashboards/rules)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import yaml

from tests.dashboards.promtool import FILES, promtool
from tests.oracle.driving import Series
from tests.oracle.ledger import Number

MINUTES: Final = 5
"""The rules' rates are over so many minutes."""
Labels = dict[str, str]


def case_of(server: str, before: Series, after: Series) -> dict[str, Any] | None:
    """A unit test of promtool: the service's own counters, and what the rules must make of their growth.

    Counters begin far from 0, as near it Prometheus does not extrapolate all rates alike.
    """
    grown = {key: Fraction(value) - Fraction(before[key]) for key, value in after.items() if key in before}
    expected = dict(_expected(grown))
    if not expected:
        return None
    base = 1 << math.ceil(max(grown.values())).bit_length()
    series = [
        {
            "series": _name(name, {"server": server, **dict(labels)}),
            "values": " ".join(repr(float(x)) for x in [base] * 2 + [base + value] * MINUTES),
        }
        for (name, labels), value in grown.items()
        if name.endswith("_total")
    ]
    tests = [
        {
            "expr": f'round({record}{{server="{server}"}}, 0.000001)',
            "eval_time": f"{MINUTES}m",
            "exp_samples": [
                {"labels": _name("", {"server": server, **labels}), "value": round(float(value), 6)}
                for labels, value in samples
            ],
        }
        for record, samples in expected.items()
    ]
    return {"interval": "1m", "input_series": series, "promql_expr_test": tests}


def _name(name: str, labels: Labels) -> str:
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{pairs}}}"


def _expected(grown: dict[Any, Fraction]) -> Iterator[tuple[str, list[tuple[Labels, Number]]]]:
    tokens = list(_of(grown, "moescope_tokens_total").values())
    if len(tokens) > 1 and sum(tokens):
        yield "model:moescope_dp_imbalance:ratio_rate5m", [({}, max(tokens) * len(tokens) / sum(tokens))]
    by_layer: dict[str, list[Fraction]] = {}
    for labels, value in _of(grown, "moescope_layer_ep_rank_slots_total").items():
        by_layer.setdefault(dict(labels)["layer"], []).append(value)
    busy = {layer: loads for layer, loads in by_layer.items() if sum(loads)}
    if busy:
        ratios = {layer: max(loads) * len(loads) / sum(loads) for layer, loads in busy.items()}
        most = sum(max(loads) for loads in busy.values())
        mean = sum(sum(loads) / len(loads) for loads in busy.values())
        yield "layer:moescope_ep_imbalance:ratio_rate5m", [({"layer": k}, v) for k, v in ratios.items()]
        yield "model:moescope_worst_layer_ep_imbalance:ratio_rate5m", [({}, max(ratios.values()))]
        yield "model:moescope_ep_imbalance:ratio_rate5m", [({}, most / mean)]
        yield "model:moescope_straggler_share:ratio_rate5m", [({}, 1 - mean / most)]
    most = sum(_of(grown, "moescope_straggler_max_slots_total").values())
    if most:
        mean = sum(_of(grown, "moescope_straggler_mean_slots_total").values())
        yield "model:moescope_straggler_cost:ratio_rate5m", [({}, 1 - mean / most)]


def _of(grown: dict[Any, Fraction], family: str) -> dict[Any, Fraction]:
    return {labels: value for (name, labels), value in grown.items() if name == family}


def check(folder: Path, cases: list[dict[str, Any]]) -> str:
    """What promtool says against the cases; nothing if they hold."""
    file = folder / "tests.yml"
    document = {"rule_files": [str(path) for path in FILES], "evaluation_interval": "1m", "tests": cases}
    file.write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", file)
    return "" if done.returncode == 0 else done.stdout + done.stderr
