"""Runs vLLM in each layout over hosts, and prints how its workers named their deployments.

python -m devkit.hosts                     # all of them, one after the other; needs root
python -m devkit.hosts "external LB"       # those whose name has this in it
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from devkit.hosts.layouts import LAYOUTS, Layout
from devkit.hosts.network import Network, why_no_namespaces
from devkit.hosts.runs import HOSTS, NoFramesError, Workers, expected, run
from devkit.tiny_moe import ensure_checkpoint


def main() -> int:
    """Print a row a layout; the status is 1 if a name is not as expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="", help="part of a layout's name")
    parser.add_argument("--keep", type=Path, help="folder for the servers' logs")
    options = parser.parse_args()
    reason = why_no_namespaces()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    folder = options.keep or Path(tempfile.mkdtemp(prefix="hosts-"))
    model = ensure_checkpoint(folder / "model")
    print(
        "| layout | servers | ids of starts | names, each with its workers (DP rank, TP rank) | seconds | |"
    )
    print("|---|---|---|---|---|---|")
    chosen = [layout for layout in LAYOUTS if options.part in layout.name]
    results = [_row(layout, model, folder / str(number)) for number, layout in enumerate(chosen)]
    return 0 if all(results) and results else 1


def _row(layout: Layout, model: Path, folder: Path) -> bool:
    with Network(HOSTS) as network:
        wanted = expected(layout, network)
        try:
            seen = run(layout, network, model, folder)
        except NoFramesError as error:
            _print(layout, "", str(error), "", "fails")
            return False
    good = seen.workers == wanted
    said = _text(seen.workers) if good else f"{_text(seen.workers)}, not {_text(wanted)}"
    starts = {frame.producer.start for frame in seen.frames}
    _print(layout, str(len(starts)), said, f"{seen.seconds:.0f}", "" if good else "fails")
    return good


def _print(layout: Layout, *cells: str) -> None:
    print("|", " | ".join((layout.name, str(len(layout.starts)), *cells)), "|", flush=True)


def _text(workers: Workers) -> str:
    return "; ".join(
        f"`{name}`: {', '.join(map(str, sorted(ranks)))}" for name, ranks in sorted(workers.items())
    )


if __name__ == "__main__":
    sys.exit(main())
