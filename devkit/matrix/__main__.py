"""Run each supported release of vLLM on this machine's CPUs: ``python -m devkit.matrix``, or ``make matrix``.

For each release an environment is made under .matrix (three gigabytes, less what uv's cache shares), a real
vLLM serves a tiny model without and with capture, and what moescope says is compared with vLLM's own
counters. Prints a table, and writes docs/versions.md after each release: rows of others stay as they are.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from devkit.matrix import document
from devkit.matrix.environment import FOLDER, Environment, Installer, InstallError
from devkit.matrix.record import CPU_RESULTS, Record, merge, read, write
from devkit.matrix.scenario import layouts_of, run
from devkit.tiny_moe import ensure_checkpoint

VERSIONS: Final = (
    "0.23.0",
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.27.1",
    "0.28.0",
    "0.29.0",
    "0.30.0",
    "0.31.0",
    "0.32.0",
)
"""The newest patch release of each series that has a wheel for CPUs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix; 1 if a release fell short or could not be installed, else 0."""
    asked = _parser().parse_args(arguments)
    if unknown := [version for version in asked.versions if not re.fullmatch(r"\d+\.\d+\.\d+", version)]:
        _parser().error(f"{unknown[0]} is no release, such as 0.26.0")
    records: list[Record] = []
    missing: dict[str, str] = {}
    logs = FOLDER / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    for version in asked.versions or VERSIONS:
        began = time.monotonic()
        try:
            environment = _installed(version, logs)
        except InstallError as error:
            missing[version] = str(error)
            _say(version, f"can't be installed: {error}")
            continue
        found = _run(environment, logs)
        records += found
        if not asked.dry:
            write(CPU_RESULTS, merge(read(CPU_RESULTS), found))
            document.main()
        if not asked.keep:
            environment.remove()
        _say(version, f"took {time.monotonic() - began:.0f} s")
    _report(records, missing)
    return 1 if missing or any(record.failed for record in records) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devkit.matrix", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("versions", nargs="*", help=f"which ones, all if absent: {' '.join(VERSIONS)}")
    parser.add_argument("--keep", action="store_true", help="keep the environments, for another run")
    parser.add_argument("--dry", action="store_true", help="print only; results and docs/versions.md stay")
    return parser


def _installed(version: str, logs: Path) -> Environment:
    _say(version, "installing")
    return Installer(FOLDER, logs / f"{version}-install.log").make(version)


def _run(environment: Environment, logs: Path) -> list[Record]:
    model = ensure_checkpoint(FOLDER / "model")
    records: list[Record] = []
    for layout in layouts_of(environment.version):
        folder = logs / f"{environment.version}-{layout.name.replace(' ', '-').replace('=', '')}"
        where = f"{environment.version} {layout.name}"
        record = run(environment, layout, model, folder, partial(_say, where))
        for name, found in record.checks.items():
            _say(where, f"{'FAILS' if name in record.failed else 'ok'}: {name}: {found}")
        if record.failed:
            _say(where, f"its logs are in {folder}")
        records.append(record)
    return records


def _report(records: Sequence[Record], missing: dict[str, str]) -> None:
    print()
    for record in records:
        result = f"fails: {', '.join(record.failed)}" if record.failed else "passes"
        lacks = "".join(f"; {part} not available" for part in record.unavailable)
        print(f"{record.version:8} {record.layout:10} {result}{lacks}")
    for version, reason in missing.items():
        print(f"{version:8} {'':10} not run: {reason}")


def _say(what: str, text: str) -> None:
    print(f"[matrix {time.strftime('%H:%M:%S')}] {what}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
