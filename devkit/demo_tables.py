"""What the demo shows: the balance of layers and ranks, read from the service's HTTP API and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import httpx
from rich.console import Group, RenderableType
from rich.table import Table

from moescope.service.measures.balance import MEASURES

BAR: Final = 12
IMBALANCE: Final = f"imbalance\n{MEASURES['imbalance_ratio'].formula}"
DEAD: Final = f"{MEASURES['dead'].title.lower()}\nexperts"
"""Headings of columns."""


@dataclass(frozen=True)
class Readings:
    """Answers of the service's ``/v1/ranks``, ``/v1/histogram`` and ``/v1/balance``."""

    ranks: dict[str, Any]
    histogram: dict[str, Any]
    balance: dict[str, Any]


class Service:
    """The side service, seen over HTTP; ``server`` is the deployment to ask for."""

    def __init__(self, url: str, server: str) -> None:
        self.url = url
        self._params = {"server": server}
        self._client = httpx.Client(base_url=url, timeout=10)

    def healthy(self) -> bool:
        """Whether it answers."""
        return self.serves("/healthz")

    def serves(self, path: str) -> bool:
        """Whether there is something to see at this path."""
        try:
            return bool(self._client.get(path).status_code == httpx.codes.OK)
        except httpx.HTTPError:
            return False

    def read(self) -> Readings | None:
        """The current numbers; None before the first counts have come in."""
        answers = []
        for path in ("/v1/ranks", "/v1/histogram", "/v1/balance"):
            answer = self._client.get(path, params=self._params)
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            answer.raise_for_status()
            answers.append(answer.json())
        return Readings(*answers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def render(readings: Readings | None) -> RenderableType:
    """Both tables."""
    if readings is None:
        return "waiting for the first counts"
    return Group(rank_table(readings), layer_table(readings))


def rank_table(readings: Readings) -> Table:
    """One row a data-parallel rank: whose tokens were routed."""
    table = Table(title="Data-parallel ranks", title_justify="left")
    for name in ("DP rank", "tokens", "steps", "idle steps", "state"):
        table.add_column(name, justify="right")
    for deployment in readings.ranks["deployments"]:
        for rank in deployment["dp_ranks"]:
            states = sorted({producer["state"] for producer in rank["producers"]})
            numbers = (f"{rank[key]:,}" for key in ("tokens", "steps", "idle_steps"))
            table.add_row(str(rank["dp_rank"]), *numbers, ", ".join(states))
    return table


def layer_table(readings: Readings) -> Table:
    """One row an MoE layer: how its slots fell on expert-parallel ranks and experts."""
    layers = readings.balance["layers"]
    ep_ranks = max((len(layer["over_ep_ranks"]["loads"] or []) for layer in layers), default=0)
    table = Table(title="MoE layers", title_justify="left")
    for name in ("layer", "tokens", *(f"EP rank {rank}" for rank in range(ep_ranks))):
        table.add_column(name, justify="right", no_wrap=True)
    for name in (IMBALANCE, "hottest expert", DEAD):
        table.add_column(name, justify="right")
    for layer in layers:
        table.add_row(*_layer_row(layer, ep_ranks))
    return table


def _layer_row(layer: dict[str, Any], ep_ranks: int) -> list[str]:
    row = [str(layer["layer"]), f"{layer['tokens']:,}"]
    over_ranks, over_experts = layer["over_ep_ranks"], layer["over_experts"]
    if not over_ranks["measures"] or not over_experts["measures"]:
        return [*row, *[""] * (ep_ranks + 1), over_ranks["reason"] or over_experts["reason"] or "", ""]
    total = sum(over_ranks["loads"])
    row += [_share_bar(load / total) for load in over_ranks["loads"]]
    loads = over_experts["loads"]
    hottest = max(range(len(loads)), key=loads.__getitem__)
    return [
        *row,
        f"{over_ranks['measures']['imbalance_ratio']:.2f}",
        f"{hottest} ({loads[hottest] / total:.1%})",
        str(over_experts["measures"]["dead"]),
    ]


def _share_bar(share: float) -> str:
    return f"{'█' * round(share * BAR)} {share:5.1%}"


def check_conservation(readings: Readings, computed_tokens: int) -> list[str]:
    """One line a layer: do its slots equal the tokens that vLLM says it computed, times top-k, exactly?

    Raises:
        ConservationError: some layer's don't.
    """
    lines, wrong = [], False
    for layer in readings.histogram["layers"]:
        expected = computed_tokens * layer["top_k"]
        equal = layer["slots"] == expected
        wrong |= not equal
        lines.append(
            f"layer {layer['layer']}: {layer['slots']:,} slots {'=' if equal else '≠'} {computed_tokens:,} "
            f"computed tokens x top-{layer['top_k']} {'(conserved)' if equal else f'= {expected:,}'}"
        )
    if wrong or not lines:
        raise ConservationError("\n".join(lines) or "no layer has counts")
    return lines


class ConservationError(RuntimeError):
    """Slots were lost or doubled; the message has a line for each layer."""
