"""A release of moescope, step by step; docs/release.md has the order.

python -m devkit.release check            what is not ready
python -m devkit.release prepare 0.2.0    version and changelog; look at the difference and commit it
python -m devkit.release build            wheel and sdist, built twice; bill of materials; SHA256SUMS
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from devkit.release import changelog, checks, packages, version
from devkit.release.version import ROOT


def check() -> int:
    """Print each check; 1 if one fails."""
    failed = False
    for name, wrong in checks.findings():
        print(f"[{'no' if wrong else 'ok'}] {name}")
        for line in wrong[:10]:
            print(f"       {line}")
        failed |= bool(wrong)
    return int(failed)


def prepare(new: str) -> int:
    """Write version and changelog."""
    log = ROOT / "CHANGELOG.md"
    text = changelog.released(log.read_text(), new, datetime.datetime.now(datetime.UTC).date().isoformat())
    written = version.change(new)
    log.write_text(text)
    for path in [*written, log]:
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def build(out: Path) -> int:
    """Fill a folder with what is uploaded."""
    if out.exists() and any(out.iterdir()):
        raise packages.ReleaseError(f"{out} is not empty: remove it, or name another folder with --out")
    made = packages.build_twice(out)
    (wheel,) = [path for path in made if path.suffix == ".whl"]
    with TemporaryDirectory(prefix="moescope-install-") as temporary:
        python = packages.install(wheel, Path(temporary) / "venv", "[service]")
        packages.bill_of_materials(python, out / f"moescope-{version.current()}-service.cdx.json")
    print(packages.write_sums(out).read_text(), end="")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m devkit.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("check", help="what is not ready")
    steps.add_parser("prepare", help="version and changelog").add_argument("version")
    folder = steps.add_parser("build", help="what is uploaded")
    folder.add_argument("--out", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    options = parser.parse_args(arguments)
    try:
        match options.step:
            case "check":
                return check()
            case "prepare":
                return prepare(options.version)
            case _:
                return build(options.out)
    except (packages.ReleaseError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
