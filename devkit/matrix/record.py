"""What is kept of a run: one record a release and layout, in a file that is checked in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from devkit.matrix.environment import ROOT

CPU_RESULTS: Final = ROOT / "benchmarks" / "results" / "versions_cpu.json"
"""What `make matrix` has run; the command replaces the records of what it runs."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A release of vLLM in one layout.

    Attributes:
        version: vLLM's, such as "0.26.0".
        layout: such as "DP=2 EP=2".
        on: what it ran on, such as "2 CPU cores, torch 2.13.0+cpu".
        ran: what was run, in words.
        date: ISO date.
        checks: each check to what it found, such as "exact: 4 layers x 812 tokens"; in order.
        failed: the checks, or "starts", that fell short; empty if all is well.
        unavailable: what the worker said that it can't tell, with the reasons.
    """

    version: str
    layout: str
    on: str
    ran: str
    date: str
    checks: dict[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[tuple[int, ...], str]:
        """Newest release last, then by layout."""
        return tuple(int(part) for part in self.version.split(".")), self.layout


def read(path: Path) -> list[Record]:
    """The records of a file; none if it is absent."""
    if not path.exists():
        return []
    return [Record(**(found | {"failed": tuple(found["failed"])})) for found in json.loads(path.read_text())]


def merge(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Old and new records; a release that was run again has its new ones only."""
    new = list(new)
    again = {record.version for record in new}
    return sorted([*(one for one in old if one.version not in again), *new], key=lambda one: one.key)


def write(path: Path, records: Sequence[Record]) -> None:
    """Write a file that `read` reads."""
    path.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")
