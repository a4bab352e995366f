"""The rules of `dashboards/rules`, and promtool on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "rules"
FILES = sorted(RULES.glob("*.yml"))
PROMTOOL_S: Final = 300.0
"""Far more than a run takes: about a second, ten on a machine with much else to do."""
OF = '{server="s",model="m"'
"""A series' labels as far as they are the same everywhere; to be closed."""


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind, ``alert`` or ``record``."""
    groups = [group for file in FILES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("promtool")
    assert binary is not None, "promtool is missing: install the package prometheus"
    # It collects garbage for a fifth of its time; a small test needs no small memory.
    return subprocess.run(
        [binary, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PROMTOOL_S,
        env=os.environ | {"GOGC": "400"},
    )


def check(folder: Path, cases: list[dict[str, Any]]) -> None:
    """Run promtool's unit tests: ``series``, ``at``, and ``expect``, expression to samples."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case["series"].items()],
            "promql_expr_test": [
                {
                    "expr": expr,
                    "eval_time": case["at"],
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
                }
                for expr, samples in case["expect"].items()
            ],
            "alert_rule_test": case.get("alerts", []),
        }
        for case in cases
    ]
    file = folder / "tests.yml"
    document = {"rule_files": [str(file) for file in FILES], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
