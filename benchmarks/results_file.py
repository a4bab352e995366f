"""What benchmarks with rows of figures have in common: their options, and the file of their results."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def parser_of(doc: str | None, results: Path, runs: int) -> argparse.ArgumentParser:
    """A parser with ``--runs``, ``--out`` and ``--no-results``.

    Args:
        doc: the benchmark's docstring.
        results: the file that it writes.
        runs: runs of each figure, unless asked otherwise.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help="runs a figure (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=results, help=f"results file (default: {results.name})")
    parser.add_argument("--no-results", action="store_true", help=f"don't write {results.name}")
    return parser


def keep(options: argparse.Namespace, rows: Sequence[dict[str, Any]], **machine: str) -> None:
    """Write the rows and what they were measured with, unless the options say not to.

    Args:
        options: of `parser_of`.
        rows: the figures.
        machine: what else there is to say of the machine.
    """
    if options.no_results:
        return
    facts = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        **machine,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(
        json.dumps({"machine": facts, "runs": options.runs, "rows": rows}, indent=1) + "\n"
    )
