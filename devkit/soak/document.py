"""The table of docs/gates.md: a row a gate, replaced when the gate was run."""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from devkit.soak.gate import Gate, Outcome

PAGE: Final = Path(__file__).parents[2] / "docs" / "gates.md"
BEGIN: Final = "<!-- make soak writes from here -->"
END: Final = "<!-- to here -->"


def write(outcomes: Sequence[tuple[Gate, Outcome]]) -> None:
    """Put rows into the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    found = re.finditer(r"^\| ([a-z-]+) \| .*$", old, re.MULTILINE)
    rows = {row[1]: row[0] for row in found if row[1] != "gate"}  # without the head
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for gate, outcome in outcomes:
        verdict = "reached" if outcome.passed else "**not reached**"
        figures = outcome.figures.replace("|", "/").replace("\n", " ")
        command = f"`python -m devkit.soak {gate.name}`"
        rows[gate.name] = f"| {gate.name} | {gate.ask} | {verdict} | {figures} | {command} | {today} |"
    memory = psutil.virtual_memory().total / 2**30
    machine = f"Last run on {psutil.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}."
    head = "| gate | asks | | figures | command | date |\n|---|---|---|---|---|---|"
    table = "\n".join([machine, "", head, *rows.values()])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
