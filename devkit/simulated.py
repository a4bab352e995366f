"""``make demo ARGS=--simulate``: a large fleet without vLLM."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from devkit.demo_tables import DEAD, IMBALANCE, Readings, Service
from devkit.processes import ProcessGroup
from moescope.service.measures.balance import MEASURES

LAYERS_SHOWN: Final = 12
REFRESH: Final = 2.0


def start_simulation(url: str, server: str, log: Path) -> ProcessGroup:
    """``moescope simulate`` as a process of its own: some skew, a hot expert that moves, one busy rank."""
    moescope = str(Path(sys.executable).with_name("moescope"))
    flags = ["--skew", "0.5", "--hot", "0.4", "--hot-moves-s", "30", "--rank-imbalance", "1.5"]
    flags += ["--trace-rate", "0.002"]
    return ProcessGroup([moescope, "simulate", "--url", url, "--server", server, *flags], log, os.environ)


def watch_simulation(
    service: Service, simulation: ProcessGroup, console: Console, seconds: float | None
) -> bool:
    """Show the balance until the time is up or Ctrl-C; False if the simulation ended before."""
    begin = time.monotonic()
    shown: RenderableType = "waiting for the first counts"
    with Live(shown, console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        while simulation.exit_code() is None:
            readings = service.read()
            if readings is not None:
                shown = summary(readings)
                live.update(shown, refresh=console.is_terminal)
            if seconds is not None and time.monotonic() - begin >= seconds:
                break
            time.sleep(REFRESH)
        else:
            return False
    if not console.is_terminal:
        console.print(shown)
    return True


def summary(readings: Readings) -> RenderableType:
    """One line about the whole, and the layers with the largest imbalance over EP ranks."""
    ranks = [rank for deployment in readings.ranks["deployments"] for rank in deployment["dp_ranks"]]
    over_ranks = readings.balance["summary"]["over_ep_ranks"]
    ratio = over_ranks["ratio_of_sums"]
    line = (
        f"{len(ranks)} DP ranks, {sum(rank['tokens'] for rank in ranks):,} tokens, "
        f"{over_ranks['layers']} layers; over EP ranks, sum of max / sum of mean: "
        f"{'no sample' if ratio is None else f'{ratio:.3f}'}"
    )
    layers = [layer for layer in readings.balance["layers"] if layer["over_ep_ranks"]["measures"]]
    layers.sort(key=lambda layer: -_ratio(layer))
    table = Table(title=f"The {min(LAYERS_SHOWN, len(layers))} worst layers", title_justify="left")
    max_vio = f"{MEASURES['max_vio'].title}\nover experts"
    for name in ("layer", IMBALANCE, "busiest\nEP rank", max_vio, DEAD):
        table.add_column(name, justify="right")
    for layer in layers[:LAYERS_SHOWN]:
        table.add_row(*_row(layer))
    return Group(line, table)


def _ratio(layer: dict[str, Any]) -> float:
    return float(layer["over_ep_ranks"]["measures"]["imbalance_ratio"])


def _row(layer: dict[str, Any]) -> list[str]:
    loads, experts = layer["over_ep_ranks"]["loads"], layer["over_experts"]["measures"]
    busiest = max(range(len(loads)), key=loads.__getitem__)
    return [
        str(layer["layer"]),
        f"{_ratio(layer):.2f}",
        str(busiest),
        f"{experts['max_vio']:.2f}",
        f"{experts['dead']:.0f}",
    ]
