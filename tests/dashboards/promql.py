"""The parts of PromQL that tests of the boards need: selectors, and whether promtool parses an expression."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\{[^}]*\}|\[[^\]]*\]|\d[\w.]*|[A-Za-z_:][\w:]*|\S')
_LABELS = ("by", "without", "on", "ignoring", "group_left", "group_right")
_WORDS = ("and", "or", "unless", "atan2", "bool", "offset", "start", "end", "inf", "nan")


def selectors(expr: str) -> list[tuple[str, str, str]]:
    """Each selector: its metric, its matchers with braces, its range with brackets; each may be empty."""
    tokens = _TOKEN.findall(re.sub(rf"\b({'|'.join(_LABELS)})\s*\([^)]*\)", "", expr))
    found, metric = [], ""
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        if token.startswith("{"):
            found.append((metric, token, after if after.startswith("[") else ""))
        is_name = re.match(r"[A-Za-z_:]", token) and token.lower() not in _WORDS and after != "("
        metric = token if is_name else ""
        if metric and not after.startswith("{"):
            found.append((metric, "", after if after.startswith("[") else ""))
    return found


def unparsable(expressions: Sequence[str]) -> list[str]:
    """What promtool says against them; Grafana's rate interval is filled in."""
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: install the package prometheus"
    filled = [text.replace("$__rate_interval", "5m") for text in expressions]
    rules = [{"record": f"number_{i}", "expr": text} for i, text in enumerate(filled)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yml"
        file.write_text(json.dumps({"groups": [{"name": "boards", "rules": rules}]}))
        done = subprocess.run(
            [promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        return []
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "number_" in line]
    return said or [done.stdout + done.stderr]
