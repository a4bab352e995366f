"""The GPU suite in one command, its groups side by side: `python -m devkit.gpu_suite --out FOLDER`.

Each group of tests is a pytest of its own, and all chosen groups run at once: the tests of real vLLMs wait
for processes most of the time. What came of them goes to FOLDER: ``gpu-<series>.json``, the results that
belong in ``benchmarks/results/``; ``log.txt``; and ``junit.zip``. The JUnit files stay in the folder of
``--work``, and the results are always of all that lie there: so a suite may be run in several calls, and a
test that is run again replaces its earlier result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from devkit.gpu_results import read_junit, summarise, table
from devkit.processes import ProcessGroup

ROOT: Final = Path(__file__).parents[1]
ENDED: Final = (0, 1, 5)
"""Statuses of a pytest that ended: all passed, some failed, none was chosen."""
VERSIONS: Final = """
import json, platform, torch, triton, vllm.version
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
versions = {"vllm": vllm.version.__version__, "torch": torch.__version__, "triton": triton.__version__}
print(json.dumps(versions | {"python": platform.python_version(), "gpus": gpus}))
"""


class Group(NamedTuple):
    """Tests that are run together, one after the other, beside the other groups."""

    what: str
    paths: tuple[str, ...]
    of_vllm: bool = True
    """Whether its tests run scenarios of vLLM, so that some of them can be chosen."""


OF_VLLM: Final[dict[str, Group]] = {
    "engines": Group("real engines on one GPU", ("tests/gpu/test_vllm.py",)),
    "speculation": Group("speculative decoding on one GPU", ("tests/gpu/test_speculation.py",)),
    "prefixes": Group("who computed cached prefixes, on one GPU", ("tests/gpu/test_prefixes.py",)),
    "deployments": Group("real deployments on two GPUs", ("tests/gpu/test_vllm_parallel.py",)),
    "eplb": Group("real deployments with EPLB on two GPUs", ("tests/gpu/test_eplb.py",)),
    "maps": Group("loads by vLLM's own maps in CUDA graphs", ("tests/gpu/test_eplb_kernel.py",)),
    "weights": Group("weights that change, and gpt-oss", ("tests/gpu/test_weights.py",)),
    "microbatches": Group("real deployments that split steps, on two GPUs", ("tests/gpu/test_dbo.py",)),
    "two deployments": Group("two deployments at once", ("tests/gpu/test_two_deployments.py",)),
}


def without_vllm() -> tuple[str, ...]:
    """The modules of tests on a GPU that are in no group of vLLM's."""
    taken = {path for group in OF_VLLM.values() for path in group.paths}
    modules = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/gpu").glob("test_*.py"))
    return tuple(module for module in modules if module not in taken)


GROUPS: Final[dict[str, Group]] = {
    "kernels": Group("each kernel against its torch reference", ("tests/kernels",), of_vllm=False),
    "steps": Group("steps, snapshots and traced rows in CUDA graphs", without_vllm(), of_vllm=False),
    **OF_VLLM,
}


def command(group: Group, junit: Path, runner: str | None = None, scenarios: Sequence[str] = ()) -> list[str]:
    """The pytest of a group; with a runner, or scenarios, only of the tests that have to do with them."""
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={junit}", "-o", "junit_logging=system-out"]
    if group.of_vllm:
        options += [] if runner is None else ["--runner", runner]
        options += [f"--scenario={name}" for name in scenarios]
    return [sys.executable, "-m", "pytest", *group.paths, *options]


def run(commands: Mapping[str, Sequence[str]], work: Path, limit: float) -> dict[str, int | None]:
    """Run all at once, each with its log in the folder; their exit statuses, None for one out of time."""
    groups = {name: ProcessGroup(each, work / f"{name}.log", os.environ) for name, each in commands.items()}
    deadline = time.monotonic() + limit
    codes: dict[str, int | None] = dict.fromkeys(groups)
    try:
        while time.monotonic() < deadline and None in codes.values():
            codes = {name: group.exit_code() for name, group in groups.items()}
            time.sleep(0.5)
    finally:
        for group in groups.values():
            group.stop()
    return codes


def note_ends(codes: Mapping[str, int | None], work: Path) -> dict[str, str]:
    """Why each group's latest pytest did not end as it should, empty where it did; kept between calls."""
    path = work / "ended.json"
    ended: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    for name, code in codes.items():
        ended[name] = "" if code in ENDED else f"its pytest was stopped or broke (status {code})"
    path.write_text(json.dumps(ended))
    return ended


def versions() -> dict[str, Any]:
    """What the tests ran on."""
    done = subprocess.run([sys.executable, "-c", VERSIONS], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def collect(work: Path, out: Path, facts: Mapping[str, Any], ended: Mapping[str, str]) -> dict[str, Any]:
    """The results of all JUnit files in the folder of work, written to the other one with their logs."""
    read = {name: read_junit(sorted((work / "junit").glob(f"{name}.*.xml"))) for name in GROUPS}
    results = summarise(facts, {name: group.what for name, group in GROUPS.items()}, read, ended)
    out.mkdir(parents=True, exist_ok=True)
    series = ".".join(str(facts["vllm"]).split(".")[:2])
    (out / f"gpu-{series}.json").write_text(json.dumps(results, indent=1) + "\n")
    logs = [f"== {log.stem}\n{log.read_text(errors='replace')}" for log in sorted(work.glob("*.log"))]
    (out / "log.txt").write_text("\n".join(logs))
    shutil.make_archive(str(out / "junit"), "zip", work / "junit")
    return results


def main() -> int:
    """Run the groups, write the results and print them; 1 if something failed or did not end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--runner", choices=("V1", "V2"), help="leave out what names the other model runner")
    parser.add_argument(
        "--scenarios", nargs="+", default=[], help="only the tests of these, to run them again"
    )
    parser.add_argument("--limit", type=float, default=1200, help="seconds until groups are stopped")
    parser.add_argument("--work", type=Path, help="folder that stays between calls (default: in --out)")
    parser.add_argument("--commit", default="", help="what is tested")
    options = parser.parse_args()
    work: Path = options.work or options.out / "work"
    (work / "junit").mkdir(parents=True, exist_ok=True)
    began = time.time_ns()
    commands = {
        name: command(GROUPS[name], work / "junit" / f"{name}.{began}.xml", options.runner, options.scenarios)
        for name in options.groups
    }
    started = time.monotonic()
    os.chdir(ROOT)
    codes = run(commands, work, options.limit)
    facts = versions() | {"commit": options.commit, "date": datetime.date.today().isoformat()}
    results = collect(work, options.out, facts, note_ends(codes, work))
    print(table(results))
    print(f"{time.monotonic() - started:.0f} s in all")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
